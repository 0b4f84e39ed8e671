"""Images as a user has them: pulled, loaded, committed; found by name or id; removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.image.store import Store, UnknownImage
from pytest_sandbox.linux.process import path_of

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterable, Iterator

    from pytest_sandbox.image.index import Index, Record
    from pytest_sandbox.image.reference import Reference

__all__ = ["Image", "find", "load_stream"]

_SHORTEST_ID: Final = 4
_COPIED: Final = 1 << 20
#: Of these a root file system has one, also one of a single program.
_ROOT_NAMES: Final = frozenset(
    ("bin", "dev", "etc", "lib", "lib64", "nix", "opt", "proc", "sbin", "usr", "var")
)
_DIRECTORY_STARTS: Final = ("/", "./", "../", "~")


@dataclass(frozen=True)
class Image:
    """What containers start from. Get one by :meth:`pull`, :meth:`load`, :meth:`get`, :meth:`list`
    or ``Container.commit``.

    ``reference`` is its name as docker prints it (``debian:12``), or its id where it has none;
    ``id`` the digest of its configuration, ``sha256:...``; ``layers`` the digests of its plain
    layers, bottom first; ``size`` the bytes of all files in them. ``directory`` is the directory
    that is used as an image, else empty.
    """

    reference: str
    id: str
    layers: tuple[str, ...]
    size: int
    directory: str = ""
    _store: str = ""

    @classmethod
    def pull(
        cls, reference: str, *, progress: Callable[[str, str, int, int], None] | None = None
    ) -> Image:
        """Fetch an image from its registry, and return it; what is stored already is not fetched
        again.

        ``reference`` is read as docker reads it. ``progress`` is called with a layer's digest, what
        happens to it, and bytes done and in all. Raises :class:`ImageError`: an unknown name, no
        access, a registry that does not answer, a digest that does not agree.
        """
        from pytest_sandbox.image.pull import pull

        store = Store()
        with _explained(reference):
            pulled = pull(reference, store, progress)
            return _of(store, store.index(), pulled, reference)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        progress: Callable[[str, str, int, int], None] | None = None,
    ) -> Image:
        """Store what lies at ``path``, and return it: an OCI layout (directory or tar), what
        ``docker save`` writes, or the tar of a root file system.

        Archives may be compressed by gzip, zstd, xz or bzip2; which of them it is, is seen by their
        content. ``name`` is what it is to be called, instead of the names that it brings. Of an
        archive of several images all are stored, and the first is returned. A directory with a root
        file system is used as it is, and not stored. Raises :class:`ImageError`.
        """
        return cls.load_all(path, name=name, progress=progress)[0]

    @classmethod
    def load_all(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        progress: Callable[[str, str, int, int], None] | None = None,
    ) -> list[Image]:
        """As :meth:`load`, for every image in an archive."""
        from pytest_sandbox.image.archive import is_image_directory

        where = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if os.path.isdir(where) and not is_image_directory(where):
            return [_of_directory(where)]
        return _loaded(where, name, progress)

    @classmethod
    def get(cls, reference: str) -> Image:
        """Return a stored image, by its name or by (the beginning of) its id.

        Raises :class:`ImageError` where there is none.
        """
        store = Store()
        index = store.index()
        parsed = _parsed(reference)
        found = index.find(parsed) if parsed else None
        if found is None:
            digits = reference.removeprefix("sha256:")
            matching = (
                [one for one in index.images if one.startswith(f"sha256:{digits}")]
                if len(digits) >= _SHORTEST_ID
                else []
            )
            if len(matching) > 1:
                raise ImageError(
                    f"{reference!r} is the beginning of {len(matching)} image ids. Give more "
                    "digits."
                )
            if not matching:
                raise UnknownImage(
                    reference, f"Run: pytest-sandbox pull {reference}" if parsed else ""
                )
            return _of(store, index, matching[0])
        return _of(store, index, found, reference)

    @classmethod
    def list(cls) -> list[Image]:
        """Return what is stored: an image for each name, then those without one, newest first."""
        store = Store()
        index = store.index()
        newest = sorted(index.images, key=lambda one: (-index.images[one].stored, one))
        named = [_of(store, index, one, name) for one in newest for name in index.names_of(one)]
        return named + [_of(store, index, one) for one in newest if not index.names_of(one)]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The configuration document (OCI image spec, config.md)."""
        return _document(self._store, self.id) if not self.directory else {}

    @property
    def config(self) -> dict[str, Any]:
        """How containers are started: ``Env``, ``User``, ``WorkingDir``, ``Entrypoint``, ``Cmd``,
        ``StopSignal``, ``Volumes``, ``Labels``, ...
        """
        return dict(self.document.get("config") or {})

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """How it came to be, oldest step first: ``created``, ``created_by``, ``comment``,
        ``empty_layer``.
        """
        return tuple(self.document.get("history") or ())

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called, as docker prints names."""
        return tuple(
            str(parse_reference(name)) for name in Store(self._store).index().names_of(self.id)
        )

    @property
    def repository_digests(self) -> tuple[str, ...]:
        """What registries call it that it was pulled from: ``debian@sha256:...``."""
        index = Store(self._store).index()
        found = {
            name: index.digests[name] for name in index.names_of(self.id) if name in index.digests
        }
        return tuple(
            sorted(
                {
                    f"{parse_reference(name).familiar_name}@{digest}"
                    for name, digest in found.items()
                }
            )
        )

    def layer_sizes(self) -> tuple[int, ...]:
        """Return the bytes of files in each layer, bottom first."""
        store = Store(self._store)
        return tuple(store.layer_facts(key).size for key in self.layers)

    @property
    def environment(self) -> dict[str, str]:
        """``Env`` as a dict."""
        return dict(text.partition("=")[::2] for text in self.config.get("Env") or ())

    def command(self, arguments: Iterable[str] = ()) -> tuple[str, ...]:
        """Return what ``docker run`` would start: the entry point with these arguments, or with the
        image's own command.
        """
        given = tuple(arguments) or tuple(self.config.get("Cmd") or ())
        return (*(self.config.get("Entrypoint") or ()), *given)

    def lower_directories(self) -> tuple[str, ...]:
        """Return the directories that a container lies on, topmost first."""
        if self.directory:
            return (self.directory,)
        record = self._record
        if record.base == "host":
            return ("/",)
        return (*map(Store(self._store).layer_path, record.mounts), *filter(None, [record.base]))

    def above(self) -> tuple[tuple[str, str], ...]:
        """Return what lies between the host's own root and a container, topmost first: each
        directory with the file system that it belongs to.
        """
        if self.base != "host":
            return ()
        record, store = self._record, Store(self._store)
        return tuple((self.points.get(key, ""), store.layer_path(key)) for key in record.mounts)

    @property
    def base(self) -> str:
        """What the layers of a commit lie on, if not on an image: ``"host"``, or a directory with a
        root file system.
        """
        return "" if self.directory else self._record.base

    @property
    def points(self) -> dict[str, str]:
        """Which of the host's file systems a layer belongs to, by the layers' keys."""
        return {} if self.directory else self._record.points

    @property
    def _record(self) -> Record:
        try:
            return Store(self._store).index().images[self.id]
        except KeyError:
            raise UnknownImage(self.reference) from None

    def hold(self) -> int:
        """Keep the image from being removed while a container lives on it; returns a descriptor to
        close, -1 for a directory.
        """
        return -1 if self.directory else Store(self._store).hold(self.id)

    def remove(self) -> builtins.list[str]:
        """Take the image's name away, and with the last name the image and the layers that no other
        has; a directory stays as it is.

        Returns what is gone: names and ids. Raises :class:`ImageError` where a container lives on
        it.
        """
        if self.directory:
            return []
        from pytest_sandbox.image.prune import remove

        name = _name_of(self.reference) if self.reference != self.id else ""
        gone = remove(Store(self._store), self.id, name=name)
        return [one if one == self.id else str(parse_reference(one)) for one in gone]


def find(value: object) -> Image | None:
    """Return the image that a setting means: None for the host's root; an :class:`Image`, a stored
    one by name or id, a directory by path.

    A name that is stored wins over a directory of the same name; write ``./NAME`` for the
    directory.
    """
    if value == "host":
        return None
    if isinstance(value, Image):
        return value
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text:
        raise ImageError(f"image={value!r} is neither a name, a path nor an Image")
    if not text.startswith(_DIRECTORY_STARTS):
        try:
            return Image.get(text)
        except ImageError:
            if not os.path.isdir(text):
                raise
    where = os.path.abspath(os.path.expanduser(text))
    if not os.path.isdir(where):
        raise ImageError(
            f"image={text!r}: there is no such directory. Give a directory with a root file "
            "system, or the name of a stored image."
        )
    return _of_directory(where)


def load_stream(
    stream: BinaryIO,
    *,
    name: str = "",
    progress: Callable[[str, str, int, int], None] | None = None,
) -> list[Image]:
    """Load the images of an archive that comes as a stream.

    It is copied to a file that has no name, and so goes with this process, however that ends.
    """
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, _COPIED)
        copy.flush()
        return _loaded(path_of(copy.fileno()), name, progress, "the archive on stdin")


def _loaded(
    where: str,
    name: str,
    progress: Callable[[str, str, int, int], None] | None,
    title: str = "",
) -> list[Image]:
    """Load what lies at an absolute path."""
    from pytest_sandbox.image.archive import Loader, full_name, load
    from pytest_sandbox.image.manifest import Platform
    from pytest_sandbox.image.size_limits import limits_from_environment
    from pytest_sandbox.image.transaction import Adding

    store = Store()
    names = (full_name(name),) if name else ()
    told = progress or (lambda *_: None)
    with _explained(title or where), Adding(store) as adding:
        limits = limits_from_environment()
        loader = Loader(adding, limits, Platform.of_host(), names, told, title)
        loaded = load(where, store, loader)
        index = store.index()
        return [_of(store, index, one, loader.called[one]) for one in loaded]


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the system refuses (no room, no rights, a file that went) into an ImageError that
    says where.
    """
    try:
        yield
    except OSError as error:
        where = (
            f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
        )
        raise ImageError(f"{what}: {error.strerror or error}{where}") from error


def _parsed(reference: str) -> Reference | None:
    """Read a name; None for what is none (an id may look like one, and may not)."""
    try:
        return parse_reference(reference)
    except ImageError:
        return None


def _name_of(reference: str) -> str:
    """Return the spelling that the index keeps a name under, "" for what is no name."""
    parsed = _parsed(reference)
    return parsed.full if parsed else ""


def _of(store: Store, index: Index, image_id: str, reference: str = "") -> Image:
    record = index.images.get(image_id)
    if record is None:
        raise UnknownImage(reference or image_id)
    names = index.names_of(image_id)
    name = _name_of(reference)
    shown = str(parse_reference(name if name in names else names[0])) if names else image_id
    return Image(shown, image_id, record.layers, record.size, _store=store.directory)


def _of_directory(path: str) -> Image:
    """Return the image of a directory. Raises ImageError unless it looks like a root file system:
    any other is a mistake, such as the project's own directory.
    """
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    if not names & _ROOT_NAMES:
        raise ImageError(
            f"{path} does not look like a root file system: it has none of "
            f"{', '.join(sorted(_ROOT_NAMES))}. Make one of them there if it is."
        )
    return Image(path, f"directory:{path}", (), 0, directory=path)


@lru_cache(maxsize=64)
def _document(store: str, image_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Store(store).document(image_id))
    return document
