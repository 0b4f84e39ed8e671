"""The store's JSON files: the index of images and the metadata of layers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

from pytest_sandbox.errors import ImageError

if TYPE_CHECKING:
    from pytest_sandbox.image.reference import Reference

__all__ = [
    "CORRUPT_ERRORS",
    "FORMAT",
    "Index",
    "LayerInfo",
    "Record",
    "hex_of",
    "read_index",
    "read_layer_info",
    "to_json",
]

#: The current format. Format 1 has no number; its layers were modified by images that use them.
FORMAT: Final = 2
#: Exceptions of reading a damaged file.
CORRUPT_ERRORS: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """The content of layer.json: sizes, and what mounting the layer requires.

    The fields are those of ``extract.Unpacked``. Paths that are not UTF-8 are surrogate-escaped.
    """

    size: int = 0
    entries: int = 0
    opaque_root: bool = False
    implied: tuple[str, ...] = ()
    not_kept: dict[str, int] = field(default_factory=dict)
    whiteouts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One image in the index: the keys of its layers, bottom first, and those that a container
    mounts, topmost first.

    For a commit of a container that is not on an image, ``base`` is "host" or the directory of its
    root file system, and ``points`` maps layers to the mount point on the host that they belong to,
    unless that is "/". ``format`` is that of the version that wrote the record.
    """

    layers: tuple[str, ...]
    mounts: tuple[str, ...]
    size: int
    stored: float
    manifest: str = ""
    base: str = ""
    points: dict[str, str] = field(default_factory=dict)
    format: int = 1


@dataclass(slots=True)
class Index:
    """The stored images: ``names`` maps full references to image ids, ``images`` ids to records,
    ``digests`` names of pulled images to the digest of their manifest or index in the registry.
    """

    names: dict[str, str] = field(default_factory=dict)
    images: dict[str, Record] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def find(self, reference: Reference) -> str | None:
        """Return the id of an image by its name, or by the digest that it was pulled with."""
        found = self.names.get(reference.full)
        if found is None and reference.digest:
            start = f"{reference.registry}/{reference.repository}:"
            known = (
                name
                for name, digest in self.digests.items()
                if digest == reference.digest and name.startswith(start)
            )
            found = next((self.names[name] for name in known if name in self.names), None)
        return found

    def set_name(self, name: str, image_id: str, digest: str = "") -> None:
        """Give an image a name, and remove the name from any other image."""
        self.names[name] = image_id
        self.digests.pop(name, None)
        if digest:
            self.digests[name] = digest

    def remove_name(self, name: str) -> None:
        """Remove a name."""
        self.names.pop(name, None)
        self.digests.pop(name, None)

    def names_of(self, image_id: str) -> list[str]:
        return sorted(name for name, found in self.names.items() if found == image_id)

    def layers_in_use(self) -> set[str]:
        return {key for record in self.images.values() for key in (*record.layers, *record.mounts)}

    def documents_in_use(self) -> set[str]:
        return {*self.images, *(record.manifest for record in self.images.values())}


def hex_of(digest: str) -> str:
    """Return the hexadecimal digits of a digest, for file names."""
    return digest.removeprefix("sha256:")


def _check_version(path: str, unknown: set[str], number: object = FORMAT) -> None:
    """Raise ImageError for a file of a newer version, which is not damaged."""
    if unknown or (isinstance(number, int) and number > FORMAT):
        what = f"with {', '.join(sorted(unknown))[:80]}" if unknown else f"format {number}"
        raise ImageError(
            f"{path} was written by a newer pytest-sandbox ({what}; this one knows format "
            f"{FORMAT}). Use the newer one, or another store with PYTEST_SANDBOX_HOME."
        )


def read_layer_info(file: TextIO) -> LayerInfo:
    """Read a layer.json. Raises one of CORRUPT_ERRORS if it is damaged, ImageError if a newer
    version has written it.
    """
    data = json.load(file)
    _check_version(file.name, set(data) - set(LayerInfo.__dataclass_fields__))
    lists = {name: tuple(data.get(name, ())) for name in ("implied", "whiteouts")}
    found = LayerInfo(**{**data, **lists})
    if not all(isinstance(one, int) for one in (found.size, found.entries)):
        raise TypeError("size and entries are numbers")
    return found


_last_read: tuple[object, Index] = (None, Index())


def read_index(file: TextIO, version: tuple[int, ...]) -> Index:
    """Read an index; the last one is cached by ``version``, as every container reads it.

    Raises as :func:`read_layer_info`.
    """
    global _last_read  # noqa: PLW0603 - a cache of one
    if _last_read[0] == version:
        return _last_read[1]
    data = json.load(file)
    _check_version(file.name, set(), data.get("format", 1))
    images = {image_id: _record(record, file.name) for image_id, record in data["images"].items()}
    names = {name: found for name, found in data["names"].items() if found in images}
    index = Index(names, images, dict(data["digests"]))
    _last_read = (version, index)
    return index


def _record(data: dict[str, Any], path: str) -> Record:
    _check_version(path, set(data) - set(Record.__dataclass_fields__))
    return Record(**{**data, "layers": tuple(data["layers"]), "mounts": tuple(data["mounts"])})


def to_json(index: Index) -> str:
    """Return an index as JSON."""
    images = {key: asdict(record) for key, record in index.images.items()}
    return json.dumps(
        {"format": FORMAT, "names": index.names, "digests": index.digests, "images": images},
        sort_keys=True,
    )
