"""The parsers of settings that name files: volumes, devices and artifacts. See parsers.py."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pytest_sandbox.settings.parsers import (
    RefusedError,
    absolute,
    as_text,
    some_bytes,
    split_items,
)
from pytest_sandbox.settings.schema import DEVICE_FORM, TMP_PATH

#: Docker's options. All except ro and rw are for SELinux or Docker Desktop, and have no effect.
_VOLUME_OPTIONS = ("ro", "rw", "z", "Z", "cached", "delegated", "consistent")
_TMPFS_OPTIONS = {"size", "mode", "ro", "rw", "exec", "noexec", "nosuid", "nodev"}


@dataclass(frozen=True, slots=True)
class Volume:
    """A host directory or file that is mounted inside: ``source`` on the host is ``target`` inside.

    ``source`` is as the user wrote it: absolute, or beginning with ``.`` or ``~``.
    """

    source: str
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}{':ro' if self.read_only else ''}"


def artifacts(value: object) -> tuple[str, ...]:
    """Return patterns of paths, each once; "{tmp_path}" only at the beginning."""
    return tuple(dict.fromkeys(map(_artifact, split_items(value))))


def _artifact(value: object) -> str:
    pattern = as_text(value)
    start, placeholder, rest = pattern.partition(TMP_PATH)
    is_plain = not placeholder or (not start and rest[:1] in {"", "/"})
    if not is_plain or TMP_PATH in rest or ".." in pattern.split("/") or not pattern.strip("/."):
        raise RefusedError
    return pattern


def volumes(value: object) -> tuple[Volume, ...]:
    """Return volumes with different targets."""
    separator = (
        rf",(?!(?:{'|'.join(_VOLUME_OPTIONS)})\s*(?:,|$))"  # "/a:/b:ro,z,/c:/d" has two items
    )
    volumes = tuple(
        one if isinstance(one, Volume) else _volume(one) for one in split_items(value, separator)
    )
    _check_targets([volume.target for volume in volumes])
    return volumes


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory at ``target``: its size in bytes (None: half of the memory), and the
    mode of its root.
    """

    target: str
    size: int | None = None
    mode: int = 0o1777
    read_only: bool = False
    executable: bool = False

    def __str__(self) -> str:
        size = "" if self.size is None else f",size={self.size}"
        switches = f"{',ro' if self.read_only else ''}{',exec' if self.executable else ''}"
        return f"{self.target}:mode={self.mode:o}{size}{switches}"


def tmpfs(value: object) -> tuple[Tmpfs, ...]:
    """Return file systems in memory with different targets."""
    items = split_items(value, r",(?=\s*/)")
    found = tuple(one if isinstance(one, Tmpfs) else _tmpfs(one) for one in items)
    _check_targets([one.target for one in found])
    return found


def _tmpfs(value: object) -> Tmpfs:
    path, _colon, options = as_text(value).partition(":")
    given = [one.partition("=")[::2] for one in options.split(",") if one]
    words = {name for name, _text in given}
    if not words <= _TMPFS_OPTIONS or {"ro", "rw"} <= words or {"exec", "noexec"} <= words:
        raise RefusedError
    texts = dict(given)
    if any(bool(text) != (name in {"size", "mode"}) for name, text in given):
        raise RefusedError
    mode = texts.get("mode", "1777")
    if not re.fullmatch(r"[0-7]{3,5}", mode, re.ASCII) or int(mode, 8) > 0o1777:
        raise RefusedError
    size = some_bytes(texts["size"]) if "size" in texts else None
    return Tmpfs(_target(path), size, int(mode, 8), "ro" in words, "exec" in words)


def _target(path: str) -> str:
    """Return a normalized path inside. Raises :class:`RefusedError` for the root."""
    target = os.path.normpath(absolute(path))
    if target in {"/", "//"}:
        raise RefusedError('a target below "/"; to use a directory as the root, set image="PATH"')
    return target.replace("//", "/")


def _check_targets(targets: list[str]) -> None:
    if len(targets) != len(set(targets)):
        raise RefusedError(f"each target once ({max(targets, key=targets.count)} is repeated)")


def _volume(value: object) -> Volume:
    source, *rest = as_text(value).split(":")
    if not 1 <= len(rest) <= 2:
        raise RefusedError
    options = rest[1].split(",") if rest[1:] else []
    if not set(options) <= set(_VOLUME_OPTIONS) or {"ro", "rw"} <= set(options):
        raise RefusedError
    if not source.startswith(("/", ".", "~")):
        raise RefusedError(
            f'a path, since there are no named volumes; "./{source}:{rest[0]}" is a directory in '
            "the current one"
        )
    return Volume(source, _target(rest[0]), "ro" in options)


def devices(value: object) -> tuple[Volume, ...]:
    """Return device nodes, or directories of them, with different targets."""
    found = tuple(one if isinstance(one, Volume) else _device(one) for one in split_items(value))
    _check_targets([device.target for device in found])
    return found


def _device(value: object) -> Volume:
    source, *rest = as_text(value).split(":")
    # Docker's short form SOURCE:ACCESS has no slash in its second part.
    access = rest.pop() if rest and "/" not in rest[-1] else "rw"
    if not {"r", "w"} <= set(access) <= {"r", "w", "m"}:
        raise RefusedError(
            f"{DEVICE_FORM}; a mount cannot deny reading or writing alone, so access is rw"
        )
    if len(rest) > 1:
        raise RefusedError
    return Volume(absolute(source), os.path.normpath(absolute(rest[0] if rest else source)))


def gpus(value: object) -> str:
    """Return "all", or "device=" and numbers of GPUs."""
    text = as_text(value).replace(" ", "")
    if text != "all" and not re.fullmatch(r"device=[0-9]{1,3}(,[0-9]{1,3})*", text, re.ASCII):
        raise RefusedError
    return text
