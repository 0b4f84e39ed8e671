"""The class of images: pull, load, find, list and remove them."""

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

__all__ = ["Image", "find", "load_stream", "save_images"]

_SHORTEST_ID: Final = 4
_COPIED: Final = 1 << 20
#: A root file system contains at least one of these, also with a single program.
_ROOT_NAMES: Final = frozenset(
    ("bin", "dev", "etc", "lib", "lib64", "nix", "opt", "proc", "sbin", "usr", "var")
)
_DIRECTORY_STARTS: Final = ("/", "./", "../", "~")


@dataclass(frozen=True)
class Image:
    """A root file system that containers use.

    Get one by :meth:`pull`, :meth:`load`, :meth:`get`, :meth:`list` or ``Container.commit``.

    ``reference`` is its name as docker prints it (``debian:12``), or its id if it has no name;
    ``id`` the digest of its configuration, ``sha256:...``; ``layers`` the digests of its plain
    layers, bottom first; ``size`` the bytes of all files in them. ``directory`` is the path if a
    directory is used as an image, else empty.
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
        """Fetch an image from its registry and return it; stored layers are not fetched again.

        ``reference`` has docker's syntax. ``progress`` is called with a layer's digest, the action,
        the bytes that are done and the total. Raises :class:`ImageError` for an unknown name, if
        access is denied, the registry does not respond, or a digest is wrong.
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
        """Store the image at ``path`` and return it.

        ``path`` is an OCI layout (directory or tar), an archive of ``docker save``, or the tar of a
        root file system.

        Archives may be compressed with gzip, zstd, xz or bzip2, which is detected from their
        content. ``name`` replaces the names in the archive. If it contains several images, all are
        stored, and the first is returned. A directory with a root file system is used in place, and
        not stored. Raises :class:`ImageError`.
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
        """As :meth:`load`; return all images of an archive."""
        from pytest_sandbox.image.archive import is_image_directory

        where = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if os.path.isdir(where) and not is_image_directory(where):
            return [_of_directory(where)]
        return _loaded(where, name, progress)

    @classmethod
    def get(cls, reference: str) -> Image:
        """Return a stored image by its name, its id or a prefix of its id.

        Raises :class:`ImageError` if there is none.
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
                    f"{reference!r} is a prefix of {len(matching)} image ids. Use more digits."
                )
            if not matching:
                raise UnknownImage(
                    reference, f"Run: pytest-sandbox pull {reference}" if parsed else ""
                )
            return _of(store, index, matching[0])
        return _of(store, index, found, reference)

    @classmethod
    def list(cls) -> list[Image]:
        """Return the stored images: one for each name, then those without a name, newest first."""
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
        """The settings of containers: ``Env``, ``User``, ``WorkingDir``, ``Entrypoint``, ``Cmd``,
        ``StopSignal``, ``Volumes``, ``Labels``, ...
        """
        return dict(self.document.get("config") or {})

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """The steps of its build, oldest first: ``created``, ``created_by``, ``comment``,
        ``empty_layer``.
        """
        return tuple(self.document.get("history") or ())

    @property
    def names(self) -> tuple[str, ...]:
        """All its names, as docker prints them."""
        return tuple(
            str(parse_reference(name)) for name in Store(self._store).index().names_of(self.id)
        )

    @property
    def repository_digests(self) -> tuple[str, ...]:
        """Its digests in the registries it was pulled from: ``debian@sha256:...``."""
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
        """Return the size of the files in each layer in bytes, bottom first."""
        store = Store(self._store)
        return tuple(store.layer_info(key).size for key in self.layers)

    @property
    def environment(self) -> dict[str, str]:
        """``Env`` as a dict."""
        return dict(text.partition("=")[::2] for text in self.config.get("Env") or ())

    def command(self, arguments: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the command of ``docker run``: the entry point with these arguments, or with the
        image's command.
        """
        given = tuple(arguments) or tuple(self.config.get("Cmd") or ())
        return (*(self.config.get("Entrypoint") or ()), *given)

    def lower_directories(self) -> tuple[str, ...]:
        """Return the lower directories of a container's overlay, topmost first."""
        if self.directory:
            return (self.directory,)
        record = self._record
        if record.base == "host":
            return ("/",)
        return (*map(Store(self._store).layer_path, record.mounts), *filter(None, [record.base]))

    def above(self) -> tuple[tuple[str, str], ...]:
        """Return the layers between the host's root and a container, topmost first.

        Each is a mount point on the host ("" for its root) and a directory.
        """
        if self.base != "host":
            return ()
        record, store = self._record, Store(self._store)
        return tuple((self.points.get(key, ""), store.layer_path(key)) for key in record.mounts)

    @property
    def base(self) -> str:
        """The root file system below the layers of a commit, if it is not an image: ``"host"`` or a
        directory.
        """
        return "" if self.directory else self._record.base

    @property
    def points(self) -> dict[str, str]:
        """Maps the keys of layers to the mount point on the host that they belong to."""
        return {} if self.directory else self._record.points

    @property
    def _record(self) -> Record:
        try:
            return Store(self._store).index().images[self.id]
        except KeyError:
            raise UnknownImage(self.reference) from None

    def hold(self) -> int:
        """Lock the image, so that it is not removed while a container uses it.

        Returns the descriptor that holds the lock, -1 for a directory.
        """
        return -1 if self.directory else Store(self._store).hold(self.id)

    def tag(self, name: str) -> Image:
        """Give the image a further name, as ``docker tag``, and return it by that name; another
        image loses the name.

        Raises :class:`ImageError` for an invalid name, for one with a digest, and for an image that
        is not in the store.
        """
        reference = parse_reference(name)
        if reference.digest:
            raise ImageError(f"{name}: a name with a digest cannot be given. Use NAME:TAG.")
        self._require_stored("tag")
        store = Store(self._store)
        with store.locked() as index:
            if self.id not in index.images:
                raise UnknownImage(self.reference)
            index.set_name(reference.full, self.id)
        return _of(store, store.index(), self.id, name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the image to an archive, as ``docker save``, which :meth:`load`, docker and podman
        read.

        It has the name of this object, if any, and another id than a pulled image: the store has
        the files of its layers, which are packed again. Raises :class:`ImageError`, also for an
        image that is based on the host or on a directory.
        """
        from pytest_sandbox.image.save import open_archive

        with open_archive(path) as file:
            save_images([self], file)

    def _require_stored(self, verb: str) -> None:
        if self.directory or not self._store:
            what = "a directory" if self.directory else "in memory: commit it with a name"
            raise ImageError(f"cannot {verb} {self.reference}: it is {what}, not in the store")

    def remove(self) -> builtins.list[str]:
        """Remove the image's name, and with its last name the image and the layers that no other
        image has. A directory is not removed.

        Returns the names and ids that were removed. Raises :class:`ImageError` if a container uses
        the image.
        """
        if self.directory:
            return []
        from pytest_sandbox.image.prune import remove

        name = _name_of(self.reference) if self.reference != self.id else ""
        gone = remove(Store(self._store), self.id, name=name)
        return [one if one == self.id else str(parse_reference(one)) for one in gone]


def find(value: object) -> Image | None:
    """Return the image for a value of the setting: None for "host", or an :class:`Image`, given as
    such, by the name or id of a stored one, or by the path of a directory.

    A stored name has precedence over a directory of the same name: write ``./NAME`` for the
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


def save_images(images: Iterable[Image], target: BinaryIO) -> None:
    """Write images to one archive, each with the name that it was found by. Raises
    :class:`ImageError`.
    """
    from pytest_sandbox.image.save import Saved, save

    chosen = []
    for image in images:
        image._require_stored("save")  # noqa: SLF001 - its own
        name = "" if image.reference == image.id or "@" in image.reference else image.reference
        chosen.append(Saved(image.id, image.layers, image.document, name, image.base))
    with _explained("save"):
        save(Store(), chosen, target)


def load_stream(
    stream: BinaryIO,
    *,
    name: str = "",
    progress: Callable[[str, str, int, int], None] | None = None,
) -> list[Image]:
    """Load the images of an archive from a stream.

    It is copied to an unnamed file, which the kernel removes with the process.
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
    """Load the images at an absolute path."""
    from pytest_sandbox.image.archive import Loader, full_name, load
    from pytest_sandbox.image.manifest import Platform
    from pytest_sandbox.image.size_limits import limits_from_environment
    from pytest_sandbox.image.transaction import Transaction

    store = Store()
    names = (full_name(name),) if name else ()
    told = progress or (lambda *_: None)
    with _explained(title or where), Transaction(store) as transaction:
        limits = limits_from_environment()
        loader = Loader(transaction, limits, Platform.of_host(), names, told, title)
        loaded = load(where, store, loader)
        index = store.index()
        return [_of(store, index, one, loader.loaded[one]) for one in loaded]


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise an OSError (disk full, permission denied, ...) as an ImageError with its path."""
    try:
        yield
    except OSError as error:
        where = (
            f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
        )
        raise ImageError(f"{what}: {error.strerror or error}{where}") from error


def _parsed(reference: str) -> Reference | None:
    """Parse a name; return None if it is invalid, as some ids are."""
    try:
        return parse_reference(reference)
    except ImageError:
        return None


def _name_of(reference: str) -> str:
    """Return the canonical form of a name, "" if it is invalid."""
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
    """Return the image of a directory. Raises ImageError unless it looks like a root file system;
    users pass their project's directory by mistake.
    """
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    if not names & _ROOT_NAMES:
        raise ImageError(
            f"{path} does not look like a root file system: it has none of "
            f"{', '.join(sorted(_ROOT_NAMES))}. If it is one, create one of them in it."
        )
    return Image(path, f"directory:{path}", (), 0, directory=path)


@lru_cache(maxsize=64)
def _document(store: str, image_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Store(store).document(image_id))
    return document
