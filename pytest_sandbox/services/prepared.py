"""Services whose files are prepared once, for all processes and sessions, and then cloned."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import suppress
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container import states
from pytest_sandbox.container.build_spec import serializable
from pytest_sandbox.container.missing_programs import as_service_error
from pytest_sandbox.container.snapshot import commit_to_store
from pytest_sandbox.container.waiting import last_lines
from pytest_sandbox.errors import ImageError, ServiceError, SettingsError
from pytest_sandbox.image.image import Image, find
from pytest_sandbox.services import setup_source
from pytest_sandbox.services.service import NOT_FOUND, Running, Service
from pytest_sandbox.services.service_values import is_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_sandbox.container.network import Network
    from pytest_sandbox.settings.settings import Settings

__all__ = ["DATA", "Prepared", "Program"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: The directory of a server's files in its container.
DATA = "/var/lib/pytest-sandbox"
#: Changes whenever this package prepares files in another way.
_VERSION = 1
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Settings that do not change what is prepared.
_IRRELEVANT = {"network", "publish", "hostname", "timeout", "alone"}


class Program:
    """The programs of a server: their ``names``, of which one is enough, the Debian ``package``
    that has them, an ``image`` that does, and a pattern of directories that are searched first.
    """

    def __init__(
        self, names: Sequence[str], package: str, image: str, directories: str = ""
    ) -> None:
        self.names, self.package, self.image = names, package, image
        self.directories = directories

    @property
    def missing(self) -> str:
        """What to say if none is there."""
        return (
            f"the program {' or '.join(self.names)} is not there. Install it (Debian: apt-get "
            f"install {self.package}), or use an image that has it, such as "
            f'image="{self.image}"'
        )

    def find(self, name: str) -> str:
        """Return the path on the host, as ``name`` needs it; a link is not followed, since a
        program may look at the name that it is started by. Raises :class:`ServiceError` if there is
        none.
        """
        first = sorted(glob.glob(self.directories), reverse=True) if self.directories else []
        path = ":".join([*first, os.environ.get("PATH", ""), _SYSTEM])
        for one in self.names:
            if found := shutil.which(one, path=path):
                return found
        raise ServiceError(name, self.missing)

    def script(self, command: str) -> tuple[str, ...]:
        """Return a command that runs a line of the shell with the directories in its PATH."""
        search = f'for d in {self.directories}; do PATH="$d:$PATH"; done; '
        path = f'PATH="$PATH:{_SYSTEM}"; {search if self.directories else ""}export PATH; '
        return ("/bin/sh", "-c", path + command)


class Prepared(Service):
    """A service that is started from files which ``initialise``, a command, and ``setup``, a
    function of the running service, have prepared.

    ``setup`` is called in this process, once for all workers and sessions until its source, a file
    that it names, one of ``files``, a setting or the server's program changes. ``ahead`` is how
    many services are started in advance (0 or 1).
    """

    def __init__(
        self,
        program: Program,
        initialise: str,
        command: str,
        *,
        setup: Callable[[Running], object] | None,
        files: Iterable[str | os.PathLike[str]],
        ahead: int,
        stop_signal: int,
        **keywords: Any,
    ) -> None:
        super().__init__(program.script(f"exec {command}"), **keywords)
        self.stop_signal = stop_signal
        self.is_disposable = True
        if setup is not None and not callable(setup):
            raise SettingsError("setup", setup, "a function, called with the running service")
        self.missing = program.missing
        self._program, self._setup, self._files = program, setup, tuple(files)
        self._initialise = program.script(initialise)
        self.is_ahead = is_one(ahead)
        self._image: Image | None = None

    def begin(self, network: Network | None) -> Running:
        """Start a clone without waiting until it is ready."""
        return self._begin(network, is_ahead=False)

    def begin_ahead(self, network: Network | None) -> Running:
        """As :meth:`begin`, for a later :meth:`start_on`."""
        return self._begin(network, is_ahead=True)

    def _begin(self, network: Network | None, *, is_ahead: bool) -> Running:
        try:
            return self._begin_clone(network, is_ahead=is_ahead)
        except ImageError:
            if self._image is None or _is_stored(self._image):
                raise
            self._image = None  # it was removed from the store meanwhile
            return self._begin_clone(network, is_ahead=is_ahead)

    def _begin_clone(self, network: Network | None, *, is_ahead: bool) -> Running:
        settings = self.settings.replace(image=self.image())
        return self.begin_from(settings, network, is_ahead=is_ahead)

    # -- the prepared files

    def image(self) -> Image:
        """Return the image with the prepared files, after preparing them if need be."""
        if self._image is None:
            self._image = states.find_or_make(self._make_key(), self._prepare)
        return self._image

    def _make_key(self) -> str:
        raw = {
            key: value
            for key, value in serializable(self.settings).items()
            if key not in _IRRELEVANT
        }
        base = find(self.settings.image)
        given = [
            _VERSION,
            _facts_of(self._program.find(self.name)) if base is None else base.id,
            self._initialise,
            self.command,
            sorted((key, repr(value)) for key, value in raw.items()),
            setup_source.facts(self._setup, self._files),
        ]
        return hashlib.sha256(json.dumps(given).encode()).hexdigest()

    def _prepare(self) -> Image:
        running = _Preparing(self, self.settings)
        with running:
            running.initialise(self._initialise)
            running.begin()
            running.await_ready()
            if self._setup is not None:
                with as_service_error(self.name, running.container.handle, what="its setup"):
                    self._setup(running)
            running.end_command()
            return commit_to_store(running.container.handle)


class _Preparing(Running):
    """The service while its files are prepared."""

    def __init__(self, service: Prepared, settings: Settings) -> None:
        published = settings.replace(publish=service.ports(settings))
        super().__init__(service, service.start_container(published))

    def initialise(self, command: Sequence[str]) -> None:
        """Run the command that creates the files. Raises :class:`ServiceError`."""
        with as_service_error(self.name, self.container.handle, what="it needs a shell"):
            done = self._run_initialise(command)
        if done.returncode:
            reason = f"its files cannot be initialised: exit status {done.returncode}"
            if done.returncode == NOT_FOUND:
                reason = self.service.missing
            raise ServiceError(self.name, reason, done.returncode, last_lines(done.stdout))

    def _run_initialise(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        owner = self.container.settings.user or "root"
        made = f"mkdir -p {DATA} && chown {owner} {DATA} && chmod 700 {DATA}"
        self.container.run(["/bin/sh", "-c", made], user="root", check=True)
        return self.container.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    def end_command(self) -> None:
        """Stop the server, and wait until it has written its files.

        Raises :class:`ServiceError` if it does not end with status 0.
        """
        assert self._command is not None
        self._command.send_signal(self.service.stop_signal or SIGTERM)
        code = self._command.wait(self.service.timeout)
        if code:
            reason = f"it did not stop after setup: exit status {code}"
            raise ServiceError(self.name, reason, code, last_lines(self.logs()))

    def close(self) -> None:
        """End the server, and discard what was not committed."""
        self.container.close()


def _facts_of(path: str) -> list[Any]:
    """Return what changes with the version of a program."""
    path = os.path.realpath(path)
    status = os.stat(path)
    return [path, status.st_size, status.st_mtime_ns]


def _is_stored(image: Image) -> bool:
    with suppress(ImageError):
        Image.get(image.id)
        return True
    return False
