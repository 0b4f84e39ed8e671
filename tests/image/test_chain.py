"""Images that share layers do not affect each other. Attributes of implied directories are those in
the lower layers of the same image.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from tarballs import Made, directory, entry, layer

from pytest_sandbox import Container, Image, ImageError
from pytest_sandbox.image.chain import Attributes, Lower, inherited_attributes, make_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_sandbox.image.store import Store

SHARED = layer(entry("etc/app.conf", b"x"))
BASE = layer(
    directory("etc", mode=0o750), directory("tmp", mode=0o1777), directory("root", mode=0o700)
)
HOSTILE = layer(directory("./", mode=0o1777, uid=1000), directory("etc", mode=0o777, uid=1000))


def load(where: Path, *layers: bytes, name: str) -> Image:
    return Image.load(Made(list(layers)).write(where / name), name=f"{name}:1")


def shown(image: Image, path: str = "") -> tuple[int, int]:
    """Return mode and owner of a directory in an overlay: those in the topmost layer."""
    tops = (os.path.join(lower, path) for lower in image.lower_directories())
    found = os.stat(next(one for one in tops if os.path.isdir(one)))
    return stat.S_IMODE(found.st_mode), found.st_uid


@pytest.mark.needs("root")
@pytest.mark.parametrize("order", [("good", "hostile"), ("hostile", "good")])
def test_an_image_does_not_change_another_one_that_shares_a_layer(tmp_path, order):
    """Each image has the attributes of its own base, in either order of loading."""
    layers = {"good": (BASE, SHARED), "hostile": (HOSTILE, SHARED)}
    images = {name: load(tmp_path, *layers[name], name=name) for name in order}
    assert images["good"].layers[1] == images["hostile"].layers[1]
    assert ((0o750, 0), (0o755, 0)) == (shown(images["good"], "etc"), shown(images["good"]))
    assert ((0o777, 1000), (0o1777, 1000)) == (
        shown(images["hostile"], "etc"),
        shown(images["hostile"]),
    )


@pytest.mark.needs("root", "busybox")
def test_a_container_sees_the_attributes_of_its_own_image(busybox, tmp_path):
    """They are unchanged after a hostile image with the same layer was loaded and removed."""
    load(tmp_path, HOSTILE, SHARED, name="hostile").remove()
    with Container(image=busybox(layer(directory("etc", mode=0o710)), SHARED)) as container:
        done = container.run(
            ["stat", "-c", "%a %u", "/etc", "/", "/tmp"], capture_output=True, text=True
        )
    assert "710 0\n755 0\n1777 0\n" == done.stdout


def test_stored_layers_are_never_changed(tmp_path, store):
    """Loading other images changes no attribute of a directory in a stored layer."""
    first = load(tmp_path, BASE, SHARED, name="first")
    path = store.layer_path(first.layers[1])
    before = [os.lstat(one) for one in (path, f"{path}/etc")]
    load(tmp_path, HOSTILE, SHARED, name="hostile")
    after = [os.lstat(one) for one in (path, f"{path}/etc")]
    assert [(one.st_mode, one.st_uid, one.st_ctime_ns) for one in before] == [
        (one.st_mode, one.st_uid, one.st_ctime_ns) for one in after
    ]


@pytest.mark.needs("root")
def test_after_a_failed_load_nothing_is_missing(tmp_path):
    """A layer that was stored before a lower one failed has the right attributes later."""
    top = layer(entry("tmp/x"), entry("root/y"))
    made = Made([BASE, top])
    where = made.write(tmp_path / "layout")
    lower = where / "blobs/sha256" / made.manifest["layers"][0]["digest"].removeprefix("sha256:")
    data = lower.read_bytes()
    lower.write_bytes(data[:-20])
    with pytest.raises(ImageError):
        Image.load(where)
    lower.write_bytes(data)
    image = Image.load(where)
    assert ((0o1777, 0), (0o700, 0)) == (shown(image, "tmp"), shown(image, "root"))


def test_an_image_whose_layers_describe_all_needs_no_layer_of_its_own(tmp_path):
    """For images of most builders, one directory is mounted for each layer."""
    image = load(tmp_path, BASE, layer(directory("etc", mode=0o750), entry("etc/x")), name="whole")
    assert 2 == len(image.lower_directories())


def test_the_layer_of_attributes_is_removed_with_its_image(tmp_path, store: Store):
    """It is a layer in the store that no other image uses."""
    image = load(tmp_path, BASE, SHARED, name="chained")
    assert 3 == len(image.lower_directories())
    image.remove()
    assert [] == os.listdir(store.path("layers"))


@pytest.fixture
def lowers(tmp_path: Path) -> Callable[..., list[Lower]]:
    """Create layers, topmost first. Each maps paths to a mode, None for an implied directory, or
    "file".
    """

    def make(*layers: dict[str, object]) -> list[Lower]:
        found = []
        for number, paths in enumerate(layers):
            root = tmp_path / f"layer{number}"
            root.mkdir(mode=0o755)
            for path, mode in paths.items():
                if mode == "file":
                    (root / path).touch()
                    continue
                (root / path).mkdir(exist_ok=True)
                (root / path).chmod(mode if isinstance(mode, int) else 0o755)
                os.utime(root / path, ns=(0, 0))
            implied = [path for path, mode in paths.items() if mode is None]
            found.append(Lower(os.fsencode(root), frozenset(map(os.fsencode, ["", *implied]))))
        return found

    return make


def modes(found: dict[bytes, Attributes]) -> dict[str, int]:
    return {path.decode(): one.mode for path, one in found.items()}


CHAINS = {
    "from the next layer": ([{"a": None}, {"a": 0o700}], {"": 0o755, "a": 0o700}),
    "through a layer where it is implied": (
        [{"a": None}, {"a": None}, {"a": 0o700}],
        {"": 0o755, "a": 0o700},
    ),
    "the topmost layer has an entry": ([{"a": 0o711}, {"a": None}, {"a": 0o700}], {}),
    "no layer has an entry": ([{"a": None}, {"b": 0o700}], {}),
    "below a file": ([{"a": None}, {"a": "file"}, {"a": 0o700}], {}),
    "nested, with parents": (
        [{"a": 0o711, "a/b": None}, {"a": 0o700, "a/b": 0o750}],
        {"": 0o755, "a": 0o711, "a/b": 0o750},
    ),
    "in a replaced directory": (
        [{"a": 0o711, "a/b": None}, {"a": "file"}, {"a": 0o700, "a/b": 0o750}],
        {},
    ),
}


@pytest.mark.parametrize(("layers", "expected"), CHAINS.values(), ids=CHAINS)
def test_attributes_come_from_the_nearest_layer_that_describes_them(lowers, layers, expected):
    """Layers below one that deletes or replaces the directory are ignored."""
    assert expected == modes(inherited_attributes(lowers(*layers)))


def test_an_opaque_directory_hides_what_lies_in_it(lowers, tmp_path):
    """It keeps its own attributes, as in containerd; lower layers do not affect its content."""
    found = lowers({"a": None, "a/b": None}, {"a": 0o700, "a/b": 0o750})
    name = "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque"
    os.setxattr(tmp_path / "layer0/a", name, b"y")
    assert {"": 0o755, "a": 0o700} == modes(inherited_attributes(found))


def test_directories_without_an_entry_get_default_attributes(lowers, tmp_path):
    """Also in a layer that another image has modified, as earlier versions did."""
    found = lowers({"a": None}, {"b": 0o700})
    (tmp_path / "layer0/a").chmod(0o777)
    assert {"": 0o755, "a": 0o755} == modes(inherited_attributes(found))


def test_many_directories_are_found_by_listing(lowers):
    """The result is the same as for a few names, which are looked up one by one."""
    names = [f"d{number}" for number in range(40)]
    found = inherited_attributes(lowers(dict.fromkeys(names), dict.fromkeys(names, 0o700)))
    assert {"": 0o755, **dict.fromkeys(names, 0o700)} == modes(found)


def test_times_and_attributes_are_inherited_too(lowers, tmp_path):
    """Inherited are mtimes with nanoseconds and extended attributes."""
    found = lowers({"a": None}, {"a": 0o755})
    os.setxattr(tmp_path / "layer1/a", "user.x", b"y")
    os.utime(tmp_path / "layer1/a", ns=(5, 1_000_000_001))
    (tmp_path / "made").mkdir()
    assert 2 == make_layer(inherited_attributes(found), os.fsencode(tmp_path / "made"))
    made = tmp_path / "made/a"
    assert (b"y", 1_000_000_001) == (os.getxattr(made, "user.x"), made.stat().st_mtime_ns)


def test_a_link_is_never_followed(lowers, tmp_path):
    """A symbolic link in a layer is not treated as a directory."""
    found = lowers({"a": None}, {"b": 0o700})
    (tmp_path / "layer1/a").symlink_to("b")
    assert {} == modes(inherited_attributes(found))


@pytest.mark.needs("root", "busybox")
def test_a_whiteout_without_a_lower_file_is_not_listed(busybox):
    """A whiteout of a file that no lower layer has is not visible in the container."""
    image = busybox(
        layer(directory("only"), entry("only/.wh.gone"), entry("only/kept"), directory("only/sub")),
        layer(directory("etc"), entry("etc/.wh.gone")),
    )
    with Container(image=image) as container:
        done = container.run(["ls", "-A", "/only", "/etc"], capture_output=True, text=True)
    assert ("/etc:\ngroup\nhostname\nhosts\npasswd\nresolv.conf\n\n/only:\nkept\nsub\n", "") == (
        done.stdout,
        done.stderr,
    )
