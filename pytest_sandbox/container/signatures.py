"""The types of :meth:`Container.run` and :meth:`Container.popen`, for type checkers.

The overloads are subprocess's in typeshed: ``text``, ``encoding``, ``errors`` and
``universal_newlines`` select str or bytes. Arguments that
:class:`~pytest_sandbox.container.popen.Popen` rejects (``preexec_fn``, ``process_group``,
``startupinfo``, ``creationflags``) are left out.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, cast, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from subprocess import CompletedProcess
    from typing import Unpack

    from _typeshed import ReadableBuffer, StrOrBytesPath

    from pytest_sandbox.container.popen import Popen

    Command: TypeAlias = StrOrBytesPath | Sequence[StrOrBytesPath]
    Environment: TypeAlias = Mapping[bytes, StrOrBytesPath] | Mapping[str, StrOrBytesPath]

__all__ = ["PopenKwargs", "typed_popen", "typed_run"]

File: TypeAlias = int | IO[Any] | None


class PopenKwargs(TypedDict, total=False):
    """Arguments of :class:`subprocess.Popen` that ``run`` and ``popen`` accept and that do not
    change the type of the output.
    """

    bufsize: int
    executable: StrOrBytesPath | None
    stdin: File
    stdout: File
    stderr: File
    close_fds: bool
    shell: bool
    cwd: StrOrBytesPath | None
    env: Environment | None
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int
    pipesize: int
    tty: bool


class StartKwargs(PopenKwargs, total=False):
    """The arguments of ``popen`` alone."""

    start_timeout: float | None
    log: bool


class _Run(Protocol):
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        input: str | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Unpack[PopenKwargs],
    ) -> CompletedProcess[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        input: str | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Unpack[PopenKwargs],
    ) -> CompletedProcess[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str,
        universal_newlines: bool | None = None,
        input: str | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Unpack[PopenKwargs],
    ) -> CompletedProcess[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: Literal[True],
        input: str | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Unpack[PopenKwargs],
    ) -> CompletedProcess[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        universal_newlines: Literal[False] | None = None,
        input: ReadableBuffer | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Unpack[PopenKwargs],
    ) -> CompletedProcess[bytes]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        input: ReadableBuffer | str | None = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Unpack[PopenKwargs],
    ) -> CompletedProcess[Any]: ...


class _Popen(Protocol):
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        **keywords: Unpack[StartKwargs],
    ) -> Popen[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        **keywords: Unpack[StartKwargs],
    ) -> Popen[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str,
        universal_newlines: bool | None = None,
        **keywords: Unpack[StartKwargs],
    ) -> Popen[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: Literal[True],
        **keywords: Unpack[StartKwargs],
    ) -> Popen[str]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        universal_newlines: Literal[False] | None = None,
        **keywords: Unpack[StartKwargs],
    ) -> Popen[bytes]: ...
    @overload
    def __call__(
        self,
        args: Command,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        **keywords: Unpack[StartKwargs],
    ) -> Popen[Any]: ...


class _RunMethod(Protocol):
    def __get__(self, instance: object, owner: type, /) -> _Run: ...


class _PopenMethod(Protocol):
    def __get__(self, instance: object, owner: type, /) -> _Popen: ...


def typed_run(method: Callable[..., CompletedProcess[Any]]) -> _RunMethod:
    """Return ``method``; type checkers see the overloads of :func:`subprocess.run`."""
    return cast("_RunMethod", method)


def typed_popen(method: Callable[..., Popen[Any]]) -> _PopenMethod:
    """Return ``method``; type checkers see the overloads of :class:`subprocess.Popen`."""
    return cast("_PopenMethod", method)
