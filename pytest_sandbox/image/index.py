"""What the store knows: values that are written as JSON, and read back strictly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

from pytest_sandbox.errors import ImageError

if TYPE_CHECKING:
    from pytest_sandbox.image.reference import Reference

__all__ = [
    "FORMAT",
    "UNREADABLE",
    "Index",
    "LayerFacts",
    "Record",
    "hex_of",
    "read_facts",
    "read_index",
    "text_of",
]

#: What is written. Format 1 has no number; its layers were changed by the images that have them.
FORMAT: Final = 2
#: What reading a damaged file raises.
UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What layer.json says: sizes, and what a mount has to know. Paths that are no UTF-8 are
    surrogate-escaped.
    """

    size: int = 0
    entries: int = 0
    opaque_root: bool = False
    implied: tuple[str, ...] = ()
    not_kept: dict[str, int] = field(default_factory=dict)
    whiteouts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One image in the index: its layers' keys, bottom first, and the keys that a container mounts,
    topmost first.

    What the layers of a commit lie on, if not on others: ``base`` is "host", or the directory of a
    root file system; ``points`` say which of the host's file systems a layer belongs to, where that
    is not its root's. ``format`` is the one that the record was written in.
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
    """What is stored: ``names`` (full references) lead to image ids, ``images`` from ids to
    records.

    ``digests`` say which manifest or index of its registry a pulled name meant.
    """

    names: dict[str, str] = field(default_factory=dict)
    images: dict[str, Record] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def find(self, reference: Reference) -> str | None:
        """Return the id of a stored image by its name, or by its name and the digest that it was
        pulled by.
        """
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

    def call(self, name: str, image_id: str, digest: str = "") -> None:
        """Give an image a name, which it takes away from another."""
        self.names[name] = image_id
        self.digests.pop(name, None)
        if digest:
            self.digests[name] = digest

    def drop(self, name: str) -> None:
        """Take a name away."""
        self.names.pop(name, None)
        self.digests.pop(name, None)

    def names_of(self, image_id: str) -> list[str]:
        return sorted(name for name, found in self.names.items() if found == image_id)

    def layers_in_use(self) -> set[str]:
        return {key for record in self.images.values() for key in (*record.layers, *record.mounts)}

    def documents_in_use(self) -> set[str]:
        return {*self.images, *(record.manifest for record in self.images.values())}


def hex_of(digest: str) -> str:
    """Return a digest's digits, which name files."""
    return digest.removeprefix("sha256:")


def _refuse_newer(path: str, unknown: set[str], number: object = FORMAT) -> None:
    """Raise ImageError where a newer version has written a file: nothing is wrong with it."""
    if unknown or (isinstance(number, int) and number > FORMAT):
        what = f"with {', '.join(sorted(unknown))[:80]}" if unknown else f"format {number}"
        raise ImageError(
            f"{path} was written by a newer pytest-sandbox ({what}; this one knows format "
            f"{FORMAT}). Use the newer one, or another store with PYTEST_SANDBOX_HOME."
        )


def read_facts(file: TextIO) -> LayerFacts:
    """Read a layer.json. Raises one of UNREADABLE where it is damaged, ImageError for a newer
    one.
    """
    data = json.load(file)
    _refuse_newer(file.name, set(data) - set(LayerFacts.__dataclass_fields__))
    lists = {name: tuple(data.get(name, ())) for name in ("implied", "whiteouts")}
    found = LayerFacts(**{**data, **lists})
    if not all(isinstance(one, int) for one in (found.size, found.entries)):
        raise TypeError("size and entries are numbers")
    return found


_last_read: tuple[object, Index] = (None, Index())


def read_index(file: TextIO, version: tuple[int, ...]) -> Index:
    """Read an index, unless ``version`` is the one that was read last: containers ask for it at
    every start. Raises as :func:`read_facts`.
    """
    global _last_read  # noqa: PLW0603 - a cache of one
    if _last_read[0] == version:
        return _last_read[1]
    data = json.load(file)
    _refuse_newer(file.name, set(), data.get("format", 1))
    images = {image_id: _record(record, file.name) for image_id, record in data["images"].items()}
    names = {name: found for name, found in data["names"].items() if found in images}
    index = Index(names, images, dict(data["digests"]))
    _last_read = (version, index)
    return index


def _record(data: dict[str, Any], path: str) -> Record:
    _refuse_newer(path, set(data) - set(Record.__dataclass_fields__))
    return Record(**{**data, "layers": tuple(data["layers"]), "mounts": tuple(data["mounts"])})


def text_of(index: Index) -> str:
    """Write an index as JSON."""
    images = {key: asdict(record) for key, record in index.images.items()}
    return json.dumps(
        {"format": FORMAT, "names": index.names, "digests": index.digests, "images": images},
        sort_keys=True,
    )
