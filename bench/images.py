"""The rows about images: one sample, made here, unpacked, pulled and started by us and by the
peers.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contestants import on_path
from bench.docker_registry import docker_registry
from bench.measure import Series, interleave
from bench.table_row import Figure, Row, figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measure import Sample
    from bench.rows import Bench

ENTRIES = 9000
MEGABYTES = 195
OURS = "pytest-sandbox"
_WORDS = [hashlib.sha256(str(n).encode()).hexdigest()[: 3 + n % 9].encode() for n in range(4000)]


def worker(operation: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench.image_worker", operation, *map(str, arguments))


def contents(entries: int, megabytes: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files like a distribution's: many small, some large, compressible to
    about a third.
    """
    chance = random.Random(1)
    text = b" ".join(chance.choices(_WORDS, k=400_000))
    weights = [chance.paretovariate(1.1) for _ in range(entries)]
    scale = megabytes * 1e6 / sum(min(weight, 400) for weight in weights)
    for number, weight in enumerate(weights):
        at = chance.randrange(len(text) // 2)
        size = int(min(weight, 400) * scale)
        yield (
            f"usr/share/d{number % 300}/file{number}",
            (text[at:] + text * (1 + size // len(text)))[:size],
        )


def layer(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o755, 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_layout(where: Path, layers: list[bytes]) -> list[bytes]:
    """Write an image as an OCI layout, tagged latest; returns the compressed layers."""
    blobs = where / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, media: str) -> dict[str, Any]:
        digits = hashlib.sha256(data).hexdigest()
        (blobs / digits).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": f"sha256:{digits}",
            "size": len(data),
        }

    packed = [gzip.compress(data, 6, mtime=0) for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add(json.dumps(config).encode(), "config.v1+json"),
        "layers": [add(data, "layer.v1.tar+gzip") for data in packed],
    }
    described = add(json.dumps(manifest).encode(), "manifest.v1+json") | {
        "annotations": {"org.opencontainers.image.ref.name": "latest"}
    }
    (where / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (where / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    return packed


@contextmanager
def scratch() -> Iterator[Path]:
    """A tmpfs of the benchmark's own."""
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="images-")))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", directory], check=True)
        undo.callback(lambda: subprocess.run(["umount", "-l", directory], check=False))
        yield directory


def against(samples: dict[str, Sample], mine: str, other: str, at_most: float) -> Figure:
    """The line of a comparison with one more peer."""
    one, two = samples[mine], samples[other]
    paired = one.paired_ratio(two) if len(one.blocks) == len(two.blocks) else None
    return Figure(
        f"{mine}, again",
        one.median,
        against=other,
        ratio=one.median / two.median,
        paired=paired,
        at_most=at_most,
    )


def measured(bench: Bench, ours: Series, peers: list[tuple[str, Series, float]]) -> list[Figure]:
    """Compare ours with each peer whose program is installed."""
    found = [(peer, limit) for program, peer, limit in peers if on_path(program)]
    first, limit = found[0]
    series = [peer for peer, _ in found] + [replace(ours, against=first.label, at_most=limit)]
    samples = interleave(series, blocks=min(bench.scale.blocks, 5), size=1)
    figures = [figure(one, samples) for one in series]
    return figures + [against(samples, ours.label, peer.label, limit) for peer, limit in found[1:]]


def unpacking(bench: Bench) -> Row:
    with scratch() as directory:
        (packed,) = write_layout(directory / "layout", [layer(list(contents(ENTRIES, MEGABYTES)))])
        (directory / "layer.tar.gz").write_bytes(packed)
        subprocess.run(
            ["tar", "-C", directory / "layout", "-cf", directory / "layout.tar", "."], check=True
        )
        figures = measured(
            bench,
            Series(f"{OURS}: Image.load", worker("load", directory)),
            [
                (
                    "tar",
                    Series("GNU tar xzf (no store, nothing verified)", worker("tar", directory)),
                    1.0,
                ),
                ("umoci", Series("umoci unpack", worker("umoci", directory)), 0.4),
                ("podman", Series("podman load", worker("podman", directory)), 0.35),
            ],
        )
        samples = interleave([Series("memory", worker("memory", directory))], blocks=1, size=1)
    figures.append(
        Figure(
            f"{OURS}: the process's memory at its largest",
            max(samples["memory"].times) / 1024,
            "MB",
            at_most=100,
        )
    )
    return Row(
        "images-unpack",
        f"One layer of {ENTRIES:,} entries, {MEGABYTES} MB, gzip, from a layout on a tmpfs to a "
        "tmpfs",
        figures,
    )


def pulling(bench: Bench) -> Row:
    if not all(map(on_path, ("docker-registry", "skopeo", "umoci"))):
        return Row(
            "images-pull", "A pull", [], ["docker-registry, skopeo or umoci is not installed."]
        )
    with (
        scratch() as directory,
        docker_registry(directory / "registry", directory / "registry.yml") as host,
    ):
        files = list(contents(ENTRIES, MEGABYTES))
        write_layout(directory / "layout", [layer(files[at::5]) for at in range(5)])
        push = (
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            "--dest-tls-verify=false",
            f"oci:{directory}/layout:latest",
        )
        subprocess.run([*push, f"docker://{host}/sample:1"], check=True)
        peer = Series(
            "skopeo copy, then umoci unpack", worker("skopeo", directory, f"{host}/sample:1")
        )
        figures = measured(
            bench,
            Series(f"{OURS}: Image.pull", worker("pull", directory, f"{host}/sample:1")),
            [("skopeo", peer, 0.6)],
        )
    return Row(
        "images-pull",
        f"The same files in 5 layers, from docker-registry on loopback, unpacked ({MEGABYTES} MB)",
        figures,
    )


def starting(bench: Bench) -> Row:
    program = shutil.which("busybox")
    if program is None:
        return Row("images-start", "A start", [], ["busybox (static) is not installed."])
    with scratch() as directory:
        base = layer([("bin/true", Path(program).read_bytes())])
        layers = [
            base,
            *(layer([(f"layer{n}/file", b"x"), ("top", str(n).encode())]) for n in range(19)),
        ]
        write_layout(directory / "layout", layers)
        load = (
            f"from pytest_sandbox import Image; Image.load({str(directory / 'layout')!r}, "
            "name='sample')"
        )
        subprocess.run(
            [sys.executable, "-c", load],
            check=True,
            env={"PYTEST_SANDBOX_HOME": f"{directory}/store", "PATH": "/usr/bin:/bin"},
        )
        host = Series("on the host's root", worker("start", directory, "host"))
        image = Series(
            "on a stored image of 20 layers",
            worker("start", directory, "sample"),
            against=host.label,
            at_most=1.15,
        )
        commit = Series(
            "commit() after 1,000 files, and a start from it",
            worker("commit", "/var/tmp"),
            against=host.label,
            at_most=2.0,
        )
        figures, _ = bench.compare([host, image, commit])
    return Row("images-start", "Create, run true, destroy, on an image and on a commit", figures)
