"""Extraction of layers: all attributes are kept, and invalid archives are an error."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tarballs import directory, entry, layer, link

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.extract import Unpacked, unpack
from pytest_sandbox.image.size_limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = Limits()
SMALL = Limits(
    layer_bytes=1 << 20,
    entries=20,
    directories=10,
    ratio=10,
    ratio_from=1 << 16,
    path_bytes=200,
    path_depth=8,
    header_bytes=8192,
    sparse_parts=4,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    where = tmp_path / "store" / "layer"
    where.mkdir(parents=True)
    return where


def put(data: bytes, where: Path, limits: Limits = LIMITS, piece: int = 1000) -> Unpacked:
    """Extract *data*, in pieces that are not aligned to blocks."""
    return unpack((data[at : at + piece] for at in range(0, len(data), piece)), str(where), limits)


def opaque(path: Path) -> bool:
    name = "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque"
    with contextlib.suppress(OSError):
        return os.getxattr(path, name) == b"y"
    return False


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@pytest.mark.needs("root")
def test_every_attribute_of_a_file_is_kept(root):
    """Mode with setuid, owner, mtime with nanoseconds, xattrs and capabilities are set."""
    capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    headers = {
        "mtime": "1000000000.123456789",
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
    }
    result = put(
        layer(entry("bin", b"x" * 5000, mode=0o4755, uid=7, gid=1 << 30, pax_headers=headers)), root
    )
    status = (root / "bin").stat()
    assert (0o104755, 7, 1 << 30, 5000) == (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_size,
    )
    assert 1000000000123456789 == status.st_mtime_ns
    assert capability == os.getxattr(root / "bin", "security.capability")
    assert (1, 5000, {}) == (result.entries, result.size, dict(result.not_kept))


@pytest.mark.needs("root")
def test_every_file_type_is_created(root):
    """Directories, links, hard links, FIFOs and devices have their owner, mode and mtime."""
    put(
        layer(
            directory("d", mode=0o1777, uid=5, mtime=1000),
            entry("d/f", b"1"),
            link("l", "/no/where", uid=3, mtime=2000),
            link("h", "d/f", kind="hard"),
            entry("p", kind="fifo", mode=0o620),
            entry("c", kind="char", devmajor=1, devminor=3, mode=0o666),
            entry("b", kind="block", devmajor=7, devminor=9, mode=0o600),
        ),
        root,
    )
    assert (0o041777, 5, 1000) == (
        (root / "d").stat().st_mode,
        (root / "d").stat().st_uid,
        (root / "d").stat().st_mtime,
    )
    assert ("/no/where", 3, 2000) == (
        os.readlink(root / "l"),
        (root / "l").lstat().st_uid,
        (root / "l").lstat().st_mtime,
    )
    assert (root / "h").samefile(root / "d/f")
    assert 0o010620 == (root / "p").stat().st_mode
    assert (0o020666, os.makedev(1, 3)) == (
        (root / "c").stat().st_mode,
        (root / "c").stat().st_rdev,
    )
    assert (0o060600, os.makedev(7, 9)) == (
        (root / "b").stat().st_mode,
        (root / "b").stat().st_rdev,
    )


def test_whiteouts_have_the_form_of_overlayfs(root):
    """A deletion is a 0:0 device, an opaque directory has the xattr, and files of the same layer
    stay.
    """
    put(
        layer(
            directory("d"),
            entry("d/.wh.gone"),
            entry("d/kept"),
            entry("d/.wh.kept"),
            directory("o"),
            entry("o/.wh..wh..opq"),
            entry("o/new"),
            entry(".wh.back"),
            directory("back"),
            entry(".wh.again"),
            entry("again", b"a"),
            entry("d/.wh..wh.plnk"),
        ),
        root,
    )
    assert is_whiteout(root / "d/gone")
    assert (root / "d/kept").is_file()
    assert opaque(root / "o")
    assert opaque(root / "back"), "deleted and created again: the directory below is hidden"
    assert b"a" == (root / "again").read_bytes()
    assert ["gone", "kept"] == sorted(os.listdir(root / "d"))


def test_an_opaque_root_is_reported(root):
    """It is a flag of the result, as overlayfs ignores the xattr of a root."""
    assert put(layer(entry(".wh..wh..opq"), entry("f")), root).opaque_root


def test_implied_directories_are_reported(root):
    """Directories without an entry are listed, and have mode 0755."""
    result = put(layer(entry("a/b/c"), directory("a/b"), entry("tmp/.wh.x")), root)
    assert {b"", b"a", b"tmp"} == set(result.implied)
    assert 0o755 == stat.S_IMODE((root / "tmp").stat().st_mode)


def test_the_last_entry_of_a_name_counts(root):
    """An entry of any type replaces an earlier one of the same name."""
    kinds = [
        entry("x", b"1"),
        directory("x"),
        link("x", "y"),
        entry("x", kind="fifo"),
        link("x", "seed", kind="hard"),
    ]
    for before in kinds:
        for after in kinds:
            where = root / str(random.random())
            where.mkdir()
            put(
                layer(entry("seed"), before, entry("x/in") if before == kinds[1] else b"", after),
                where,
            )
            expected = root / str(random.random())
            expected.mkdir()
            put(layer(entry("seed"), after), expected)
            assert stat.S_IFMT((expected / "x").lstat().st_mode) == stat.S_IFMT(
                (where / "x").lstat().st_mode
            )


def test_a_directory_may_be_replaced_by_a_link(root):
    """The attributes of directories, which are set last, are skipped for it."""
    put(layer(directory("a"), directory("a/b"), link("a", "/etc")), root)
    assert "/etc" == os.readlink(root / "a")


def test_unusual_names_are_kept(root):
    """Names may contain bytes that are not UTF-8, newlines, backslashes and spaces."""
    names = ["\udcff\udcfe", "a\nb", "a\\b", " ", "-rf", "~", "ü"]
    put(layer(*(entry(name, b"x", tar_format=tarfile.GNU_FORMAT) for name in names)), root)
    assert sorted(map(os.fsencode, names)) == sorted(os.listdir(os.fsencode(root)))


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_all_formats_of_gnu_tar_are_read(root, tmp_path, form):
    """Long names, sparse files, hard links and mtimes are those that GNU tar extracts."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        ["short"] if form in ("v7", "ustar") else ["short", "n" * 200, "/".join(["d" * 90] * 3)]
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(os.urandom(700))
    os.link(source / "short", source / "hard")
    (source / "empty").mkdir()
    (source / "link").symlink_to("short")
    sparse = ["--sparse"] if form in ("oldgnu", "gnu", "pax") else []
    if sparse:
        write_sparse(source / "sparse")
    archive = subprocess.run(
        ["tar", f"--format={form}", *sparse, "-C", source, "-c", "."],
        check=True,
        capture_output=True,
    ).stdout
    put(archive, root)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    subprocess.run(["tar", "-C", mirror, "-xp"], input=archive, check=True)
    assert described(mirror) == described(root)


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_all_pax_versions_of_a_sparse_file_are_read(root, tmp_path, version):
    """Files are sparse with each version of the map."""
    write_sparse(tmp_path / "sparse")
    command = [
        "tar",
        "--format=pax",
        f"--sparse-version={version}",
        "--sparse",
        "-C",
        tmp_path,
        "-c",
        "sparse",
    ]
    put(subprocess.run(command, check=True, capture_output=True).stdout, root)
    assert (tmp_path / "sparse").read_bytes() == (root / "sparse").read_bytes()
    assert (root / "sparse").stat().st_blocks * 512 < 3 << 20


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        for part in range(30):
            file.seek(part * 300_000)
            file.write(b"data" * 100)
        file.truncate(10_000_000)


def described(where: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(where.rglob("*")):
        status = path.lstat()
        content = (
            path.read_bytes()
            if path.is_file() and not path.is_symlink()
            else os.readlink(path)
            if path.is_symlink()
            else None
        )
        mtime = None if path.is_symlink() else status.st_mtime_ns
        found[str(path.relative_to(where))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            mtime,
            status.st_nlink,
            content,
        )
    return found


HOSTILE = {
    "dot dot": (entry("../evil"), "out of the layer"),
    "dot dot within": (entry("a/../../evil"), "out of the layer"),
    "absolute": (entry("/evil"), "absolute"),
    "empty name": (entry("", b"x"), "empty"),
    "through a link": (link("a", "..") + entry("a/evil"), "through a link"),
    "through an absolute link": (link("a", "/tmp") + entry("a/evil"), "through a link"),
    "through a file": (entry("a") + entry("a/evil"), "through a link or a file"),
    "directory through a link": (link("a", "..") + directory("a/evil"), "through a link"),
    "hard link out": (link("h", "../outside", kind="hard"), "out of the layer"),
    "hard link to nothing": (link("h", "nothing", kind="hard"), "does not exist in the layer"),
    "hard link through a link": (
        link("a", "..") + link("h", "a/outside", kind="hard"),
        "through a link",
    ),
    "hard link to a directory": (
        directory("d") + link("h", "d", kind="hard"),
        "a hard link to the directory",
    ),
    "hard link to the root": (link("h", ".", kind="hard"), "root directory"),
    "link to nothing": (link("l", ""), "without a target"),
    "whiteout of dot": (entry("d/.wh.."), "whiteout without a name"),
    "whiteout of dot dot": (entry("d/.wh..."), "whiteout without a name"),
    "whiteout through a link": (link("a", "..") + entry("a/.wh.outside"), "through a link"),
    "opaque through a link": (link("a", "..") + entry("a/.wh..wh..opq"), "through a link"),
    "root as a file": (entry("."), "must be a directory"),
    "root as a link": (link(".", "/tmp"), "must be a directory"),
    "unknown type": (entry("x", kind=b"Z"), "unknown type"),
    "NUL in a name": (entry("x", pax_headers={"path": "a\0b"}), "NUL"),
    "owner out of range": (entry("x", pax_headers={"uid": str((1 << 32) - 1)}), "out of range"),
    "size out of range": (entry("x", pax_headers={"size": str(1 << 63)}), "out of range"),
    "negative size": (entry("x", pax_headers={"size": "-1"}), "not a number"),
    "device out of range": (
        entry("x", kind="char", tar_format=tarfile.GNU_FORMAT, devmajor=1 << 40),
        "out of range|Invalid",
    ),
    "name too long for a file system": (entry("n" * 300), "too long"),
}


@pytest.mark.parametrize(("entries", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_entry_is_an_error_and_changes_nothing_outside(root, entries, message):
    """Names and links that leave the layer and invalid numbers raise an ImageError."""
    (root.parent / "outside").write_text("untouched")
    before = described(root.parent.parent)
    with pytest.raises(ImageError, match=message):
        put(layer(entries), root)
    assert before.keys() == {
        name for name in described(root.parent.parent) if not name.startswith("store/layer/")
    }
    assert before["store/outside"] == described(root.parent.parent)["store/outside"]


BOMBS = {
    "entries": (b"".join(entry(str(n)) for n in range(30)), "more than 20 entries"),
    "directories": (b"".join(directory(str(n)) for n in range(15)), "more than 10 directories"),
    "implied directories": (
        entry("1/2/3/4/5/6/f") + entry("a/b/c/d/e/f"),
        "more than 10 directories",
    ),
    "depth": (directory("/".join("abcdefghijkl")), "longer than 200 bytes or 8 directories"),
    "path": (directory("/".join(["n" * 99] * 3)), "longer than 200 bytes or 8 directories"),
    "header": (entry("x", pax_headers={"comment": "x" * 9000}), "extension headers"),
    "size": (entry("x", b"x" * (1 << 20)) + entry("y", b"y"), "larger than 1048576 bytes"),
    "sparse claim": (
        entry("x", pax_headers={"GNU.sparse.map": "", "GNU.sparse.size": str(1 << 40)}),
        "larger than 1048576 bytes",
    ),
    "sparse parts": (
        entry("x", pax_headers={"GNU.sparse.map": ",".join(["0"] * 12), "GNU.sparse.size": "9"}),
        "more than 4 parts",
    ),
    "sparse backwards": (
        entry("x", b"ab", pax_headers={"GNU.sparse.map": "5,1,0,1", "GNU.sparse.size": "9"}),
        "not in order",
    ),
    "sparse beyond": (
        entry("x", b"ab", pax_headers={"GNU.sparse.map": "8,2", "GNU.sparse.size": "9"}),
        "leaves the file",
    ),
    "sparse too little": (
        entry("x", b"ab", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}),
        "does not agree",
    ),
}


@pytest.mark.parametrize(("entries", "message"), BOMBS.values(), ids=BOMBS)
def test_limits_are_enforced(root, entries, message):
    """Entries, directories, depth, headers, sizes and sparse maps have limits."""
    with pytest.raises(ImageError, match=message):
        put(layer(entries), root, SMALL)


def test_extension_headers_of_one_entry_have_a_limit_together(root):
    """Many headers below the limit raise an ImageError."""
    one = entry("x", pax_headers={"comment": "x" * 2000})
    headers = one[: len(one) - 512]
    with pytest.raises(ImageError, match="extension headers"):
        put(layer(headers * 10, entry("x")), root, SMALL)


@pytest.mark.parametrize(("off", "accepted"), [(0, True), (1, False)])
def test_checksums_of_signed_bytes_are_accepted(root, off, accepted):
    """Old tars sum bytes as signed characters; other sums raise an ImageError."""
    header = bytearray(entry("\udcff" * 40, tar_format=tarfile.GNU_FORMAT)[:512])
    header[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in header)
    header[148:156] = b"%06o\0 " % (signed + off)
    if accepted:
        put(layer(bytes(header)), root)
        assert [b"\xff" * 40] == os.listdir(os.fsencode(root))
    else:
        with pytest.raises(ImageError, match="checksum is wrong"):
            put(layer(bytes(header)), root)


def test_a_truncated_archive_is_an_error_at_every_length(root):
    """Every prefix of an archive raises an ImageError."""
    data = layer(directory("d"), entry("d/a", b"x" * 700), link("h", "d/a", kind="hard"))[
        :-1024
    ] + bytes(512)
    for length in range(0, len(data), 128):
        where = root / str(length)
        where.mkdir()
        with pytest.raises(ImageError, match="cut off"):
            put(data[:length], where)


def test_an_archive_without_padding_at_its_end_is_read(root):
    """`umoci insert` writes no padding and end marker; the layer's digest is verified."""
    result = unpack([layer(entry("f", b"abc"))[: 512 + 3]], str(root), LIMITS, end_required=False)
    assert (1, b"abc") == (result.entries, (root / "f").read_bytes())


def test_data_after_the_end_of_the_archive_is_an_error(root):
    """A stream of two archives is not a layer."""
    with pytest.raises(ImageError, match="follows the end"):
        put(layer(entry("a")) + layer(entry("b")), root)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_archive_raises_only_image_errors(tmp_path_factory, data):
    """With any bytes changed, it is extracted or raises an ImageError."""
    good = bytearray(
        layer(
            directory("d", pax_headers={"mtime": "1.5"}),
            entry("d/a", b"x" * 700),
            link("l", "d/a"),
            link("h", "d/a", kind="hard"),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        put(bytes(good), tmp_path_factory.mktemp("damaged"))


@pytest.mark.needs("root")
def test_attributes_of_overlayfs_are_not_set(root):
    """A layer's trusted.* and user.overlay.* xattrs are counted in not_kept."""
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.good": "1",
    }
    result = put(layer(entry("f", pax_headers=headers)), root)
    assert ["user.good"] == os.listxattr(root / "f")
    assert 2 == sum(result.not_kept.values())


def test_an_unprivileged_user_gets_a_count_of_what_is_not_kept(tmp_path):
    """Files get this user's owner, and devices are skipped."""
    code = (
        "import os, sys\n"
        "from pytest_sandbox.image.extract import unpack\n"
        "from pytest_sandbox.image.size_limits import Limits\n"
        "root = os.geteuid() == 0\n"
        "os.chdir(sys.argv[1])\n"
        "root and (os.chown('.', 65534, 65534), os.setgid(65534), os.setuid(65534))\n"
        "print(dict(unpack([sys.stdin.buffer.read()], '.', Limits()).not_kept))"
    )
    data = layer(
        entry("f", uid=1), entry("g", uid=1), entry("c", kind="char", devmajor=1, devminor=3)
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], input=data, capture_output=True, check=False
    )
    assert (b"{'owner': 2, 'device': 1}\n", b"") == (done.stdout, done.stderr)


def test_metadata_of_aufs_is_not_extracted(root):
    """Only the targets of hard links in it are files of the layer."""
    result = put(
        layer(
            entry(".wh..wh.aufs"),
            directory(".wh..wh.plnk"),
            entry(".wh..wh.plnk/1.2", b"data"),
            link("linked", ".wh..wh.plnk/1.2", kind="hard"),
            directory("d"),
            directory("d/.wh..wh.orph"),
            entry("d/.wh..wh.orph/x", b"x"),
        ),
        root,
    )
    assert (["d", "linked"], []) == (sorted(os.listdir(root)), os.listdir(root / "d"))
    assert (b"data", [b""]) == ((root / "linked").read_bytes(), result.implied)
