"""Settings: every key in every accepted form, and the errors for all others."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings import (
    CAPABILITIES,
    KEYS,
    ULIMITS,
    FrozenMap,
    Settings,
    Volume,
    from_text,
    parse_size,
)

M = 1 << 20

# The cases of docker's go-units (RAMInBytes), and a few more.
SIZES = {
    "32": 32, "32b": 32, "32B": 32, "32k": 32 << 10, "32K": 32 << 10, "32kb": 32 << 10,
    "32Kb": 32 << 10, "32KiB": 32 << 10, "32Mb": 32 << 20, "32Gb": 32 << 30, "32Tb": 32 << 40,
    "32Pb": 32 << 50, "32PB": 32 << 50, "32P": 32 << 50, "32.": 32, "32.b": 32, "32.3": 32,
    "32.5kB": 33280, "32.5 kB": 33280, "32.3 mb": 33869004, "0.3 K": 307, ".3kB": 307, "1 b": 1,
    "512m": 536870912, " 1g\n": 1 << 30, "0": 0,
}  # fmt: skip
NO_SIZES = [
    "", "hello", ".", ". ", " ", "  ", "-32", "-32b", "32bb", "32 m b", "32  mm", "32u", "32bm",
    "1e3", "1_000", "0x10", "inf", "nan", "32 kk", "٣k", "9999999999999p", "9" * 5000,
    None, 1.5, True, b"1m", -1, 1 << 63, ["1m"],
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_have_docker_s_binary_units(text, size):
    """A size has the same meaning as on docker's command line."""
    assert size == parse_size(text)


@pytest.mark.parametrize("wrong", NO_SIZES)
def test_wrong_sizes_are_refused(wrong):
    """A size that docker refuses is refused with the accepted form."""
    with pytest.raises(SettingsError, match="512m"):
        parse_size(wrong)


@given(st.integers(0, 1 << 62))
def test_a_number_of_bytes_is_not_changed(number):
    """A number of bytes is read exactly, as an int and as text."""
    assert number == parse_size(number) == parse_size(str(number)) == parse_size(f"{number}b")


# Key -> pairs of what a user writes and the canonical value.
GOOD = {
    "image": [("host", "host"), ("debian:12", "debian:12"), (Path("/srv/root"), "/srv/root")],
    "memory": [("512m", 512 * M), (512 * M, 512 * M), ("6m", 6 * M)],
    "memory_high": [("48m", 48 * M)],
    "device_read_bps": [
        (["/dev/sda:1mb", "/dev/sdb:512"], {"/dev/sda": M, "/dev/sdb": 512}),
        ({"/dev/sda": "1.5k"}, {"/dev/sda": 1536}),
    ],
    "device_write_bps": [(["/dev/odd:name:2k"], {"/dev/odd:name": 2048})],
    "device_read_iops": [(["/dev/sda:100"], {"/dev/sda": 100})],
    "device_write_iops": [({"/dev/sda": 7}, {"/dev/sda": 7}), ([], {})],
    "cpus": [(1.5, 1.5), (2, 2.0), ("0.01", 0.01)],
    "cpuset": [("0-1", "0-1"), ("3,0-1, 1-2", "0-3"), ("5,0-1,3", "0-1,3,5"), (0, "0")],
    "pids_limit": [(256, 256), ("256", 256), (-1, None), (0, None), (None, None)],
    "disk": [("1g", 1 << 30)],
    "storage": [("disk", "disk"), ("memory", "memory")],
    "shm_size": [("128m", 128 * M)],
    "timeout": [(30, 30.0), (0.5, 0.5), ("2.5", 2.5)],
    "network": [("none", "none"), ("host", "host")],
    "hostname": [("db", "db"), ("a-1.example.org", "a-1.example.org"), ("a" * 63, "a" * 63)],
    "env": [
        ({"A": "1", "B": ""}, {"A": "1", "B": ""}),
        (["A=1", "B=x=y"], {"A": "1", "B": "x=y"}),
    ],
    "user": [
        ("1000:1000", "1000:1000"),
        (1000, "1000"),
        ("www-data", "www-data"),
        ("a.b:users", "a.b:users"),
    ],
    "workdir": [("/srv", "/srv"), (Path("/srv"), "/srv")],
    "volumes": [
        (
            ["./out:/out", "/data:/data/:ro"],
            (Volume("./out", "/out"), Volume("/data", "/data", read_only=True)),
        ),
        (
            ["/a:/b:z", "/c:/d:Z", "/e:/f:cached", "/g:/h:ro,delegated"],
            (
                Volume("/a", "/b"),
                Volume("/c", "/d"),
                Volume("/e", "/f"),
                Volume("/g", "/h", read_only=True),
            ),
        ),
        (
            "/a:/b:ro,z,/c:/d:consistent, /e:/f",
            (Volume("/a", "/b", read_only=True), Volume("/c", "/d"), Volume("/e", "/f")),
        ),
        ([Volume("/a", "/b")], (Volume("/a", "/b"),)),
        ("~/c:/c:rw", (Volume("~/c", "/c"),)),
    ],
    "read_only": [(True, True), ("false", False)],
    "privileged": [("yes", True)],
    "cap_add": [
        (["net_admin", "CAP_SYS_TIME", "NET_ADMIN"], ("CAP_NET_ADMIN", "CAP_SYS_TIME")),
    ],
    "cap_drop": [("all", ("ALL",))],
    "ulimits": [
        ({"nofile": 1024, "core": (0, -1)}, {"nofile": (1024, 1024), "core": (0, -1)}),
        (
            {"nofile": "10:20", "stack": "unlimited", "cpu": [1, "unlimited"]},
            {"nofile": (10, 20), "stack": (-1, -1), "cpu": (1, -1)},
        ),
    ],
    "security_opt": [
        (
            ["seccomp=unconfined", "no-new-privileges=false"],
            ("seccomp=unconfined", "no-new-privileges:false"),
        ),
        (["no-new-privileges:true"], ("no-new-privileges",)),
    ],
}


@pytest.mark.parametrize(
    ("key", "written", "canonical"),
    [(key, written, canonical) for key, cases in GOOD.items() for written, canonical in cases],
)
def test_every_form_becomes_the_canonical_value(key, written, canonical):
    """Each accepted form of a value is read as the same canonical value, of the same type."""
    value = getattr(Settings.of(**{key: written}), key)
    assert canonical == value
    assert isinstance(value, type(canonical) if not isinstance(canonical, dict) else FrozenMap)


NO_LIMITS = ["lots", "-1", -1, 0, "0", 1.5, True, [], {}, b"6m", object()]
NO_RATES = [
    ["/dev/sda"],
    ["sda:1"],
    ["/dev/sda:"],
    ["/dev/sda:0"],
    ["/dev/sda:1"],
    ["/dev/sda:-1"],
    {"/dev/sda": 1.5},
    {"/dev/sda": True},
    {1: 1},
    ["/dev/sda:3", "/dev/sda:2"],
    [1],
    1,
    [{"/dev/sda": 1}],
]
NO_COUNTS = [*NO_RATES, ["/dev/sda:1mb"], {"/dev/sda": 1 << 32}]
NO_SWITCHES = [2, 0, 1, "maybe", "", []]
NO_CAPABILITIES = [["FLY"], [1], 1, {"CHOWN": 1}, ["CAP_ALL"]]
NAN, INFINITY = float("nan"), float("inf")
# Key -> values that are refused.
BAD = {
    "memory": [*NO_LIMITS, "5m"],
    "memory_high": ["5m", "-1"],
    "memory_swap": [-2, []],
    "disk": NO_LIMITS,
    "shm_size": NO_LIMITS,
    "device_read_bps": NO_RATES,
    "device_write_bps": NO_RATES,
    "device_read_iops": NO_COUNTS,
    "device_write_iops": NO_COUNTS,
    "cpus": [0, -1, "two", NAN, INFINITY, True, [], 0.001, 1e9],
    "cpuset": ["", "a", "1-0", "0-", "-1", "0,,1", "0-7:2/4", "99999", 1.5, [0, 1]],
    "pids_limit": [-2, "many", 1.5, True, 4_194_305, []],
    "timeout": [0, -1, "soon", NAN, INFINITY, True, []],
    "storage": ["tmpfs", "", 1, []],
    "network": ["bridge", "", "NONE", "Network", 1, True, [], {}, b"none", object()],
    "image": ["", 1, True, [], {}, b"x", object(), "a\0b"],
    "hostname": ["", "-a", "a-", "a_b", "a..b", "a" * 64, "ü", 1, "a\n"],
    "env": [
        {"A": 1},
        {1: "A"},
        {"": "x"},
        {"A=B": "x"},
        {"A": "\0"},
        ["A"],
        "A",
        1,
        [1],
        {"A": None},
    ],
    "user": ["", ":", "a:b:c", "1000:", -1, 1.5, [], 2**32 - 1, str(2**32 - 1), "a b"],
    "workdir": ["", "srv", "./srv", 1, "/a\0"],
    "volumes": [
        ["out:/out"],
        ["/data"],
        ["/a:b"],
        ["/a:/b:rx"],
        ["/a:/b:ro:z"],
        ["/a:/b:ro,rw"],
        ["/a:/b:z,"],
        ["/a:/b:U"],
        ["/a:/"],
        ["/a:/b", "/c:/b/"],
        [1],
        1,
        {"/a": "/b"},
        [""],
    ],
    "read_only": NO_SWITCHES,
    "privileged": NO_SWITCHES,
    "cap_add": NO_CAPABILITIES,
    "cap_drop": NO_CAPABILITIES,
    "ulimits": [
        {"nofiles": 1},
        {"nofile": (2, 1)},
        {"nofile": (-1, 1)},
        {"nofile": (1, 2, 3)},
        {"nofile": ()},
        {"nofile": "x"},
        {"nofile": -2},
        {"nofile": 1.5},
        {"nofile": [[1], 2]},
        {1: 1},
        ["nofile"],
        3,
    ],
    "security_opt": [
        ["apparmor=x"],
        ["seccomp=/a.json"],
        ["no-new-privileges:maybe"],
        [1],
        1,
        ["seccomp=unconfined", "seccomp=builtin"],
        ["no-new-privileges", "no-new-privileges:false"],
    ],
}


@pytest.mark.parametrize(
    ("key", "wrong"), [(key, wrong) for key, cases in BAD.items() for wrong in cases]
)
def test_a_wrong_value_names_key_value_and_form(key, wrong):
    """A wrong value is a ValueError that names the key, the value and the accepted form."""
    with pytest.raises(SettingsError) as raised:
        Settings.of(**{key: wrong})
    assert key == raised.value.key
    assert raised.value.accepted
    assert f"{key}={raised.value.value!r}" in str(raised.value)


def test_the_cases_cover_every_key():
    """Each key has good and bad cases."""
    assert set(KEYS) - {"memory_swap"} == set(GOOD)
    assert set(KEYS) == set(BAD)


def test_the_error_for_an_unknown_key_suggests_a_key():
    """A misspelt key is refused with the nearest name and the list of all names."""
    with pytest.raises(SettingsError, match=r"did you mean memory\?.*pids_limit"):
        Settings.of(memroy="1g")


@pytest.mark.parametrize(
    ("key", "wrong", "meant"),
    [("cap_add", ["NET_AMIN"], "CAP_NET_ADMIN"), ("ulimits", {"nofiles": 1}, "nofile")],
)
def test_the_error_for_a_misspelt_name_suggests_a_name(key, wrong, meant):
    """A misspelt capability or limit is refused with the nearest name."""
    with pytest.raises(SettingsError, match=f"did you mean {meant}"):
        Settings.of(**{key: wrong})


def test_the_error_for_a_named_volume_suggests_a_path():
    """A named volume is refused with the relative path that was probably meant."""
    with pytest.raises(SettingsError, match=r"\./out:/out"):
        Settings.of(volumes=["out:/out"])


def test_none_is_the_default():
    """None stands for each key's default, except for pids_limit, where it means no limit."""
    assert Settings() == Settings.of(**dict.fromkeys(set(KEYS) - {"pids_limit"}))
    assert Settings.of(pids_limit=None).pids_limit is None


def test_images_and_networks_are_accepted_as_objects():
    """An object with layers is accepted as an image, and one with a subnet as a network."""
    image, network = SimpleNamespace(layers=()), SimpleNamespace(subnet="172.30.0.0/24")
    settings = Settings.of(image=image, network=network)
    assert settings.image is image
    assert settings.network is network


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        ({}, None),
        ({"memory": "64m"}, 64 * M),
        ({"memory": "64m", "memory_swap": "96m"}, 96 * M),
        ({"memory": "64m", "memory_swap": "64m"}, 64 * M),
        ({"memory": "64m", "memory_swap": -1}, None),
        ({"memory": "64m", "memory_swap": "unlimited"}, None),
    ],
)
def test_memory_swap_is_memory_plus_swap(raw, limit):
    """memory_swap is memory plus swap: without it there is no swap, and -1 is no limit."""
    assert limit == Settings.of(**raw).swap_limit


@pytest.mark.parametrize("raw", [{"memory_swap": "64m"}, {"memory": "64m", "memory_swap": "32m"}])
def test_memory_swap_must_agree_with_memory(raw):
    """A memory_swap below memory, or without memory, is refused."""
    with pytest.raises(SettingsError, match=r"^memory_swap="):
        Settings.of(**raw)


def test_replace_keeps_the_other_keys():
    """replace() changes one key, and the swap limit that follows from it, and no other."""
    changed = Settings.of(memory="64m", cpus=1).replace(memory="128m")
    assert (128 * M, 128 * M, 1.0) == (changed.memory, changed.swap_limit, changed.cpus)


def test_given_has_the_keys_that_were_set():
    """`given` has the keys that were set, also to their default; None removes a key from it."""
    settings = Settings.of(pids_limit=4096, memory="1g").replace(memory=None, cpus=1)
    assert {"pids_limit", "cpus"} == settings.given
    assert Settings.of(pids_limit=4096) == Settings()


@pytest.mark.parametrize(
    ("raw", "seccomp", "no_new_privileges"),
    [
        ({}, True, True),
        ({"security_opt": ["seccomp=unconfined"]}, False, True),
        ({"security_opt": ["seccomp=builtin", "no-new-privileges:false"]}, True, False),
        ({"privileged": True}, False, False),
        ({"privileged": True, "security_opt": ["no-new-privileges"]}, False, True),
    ],
)
def test_security_options_turn_protections_off(raw, seccomp, no_new_privileges):
    """Both protections are on unless security_opt or privileged turns them off."""
    settings = Settings.of(**raw)
    assert (seccomp, no_new_privileges) == (settings.seccomp, settings.no_new_privileges)


# Key -> pairs of a text and the canonical value.
TEXTS = {
    "image": [("debian:12", "debian:12")],
    "memory": [("512m", 512 * M), ("none", None), ("", None)],
    "memory_swap": [("-1", -1)],
    "memory_high": [("none", None)],
    "device_read_bps": [("/dev/sda:1mb,/dev/sdb:2m", {"/dev/sda": M, "/dev/sdb": 2 * M})],
    "device_write_bps": [("", {})],
    "device_read_iops": [("\n/dev/sda:3\n/dev/a,b:2\n", {"/dev/sda": 3, "/dev/a,b": 2})],
    "device_write_iops": [("none", {})],
    "cpus": [("1.5", 1.5)],
    "cpuset": [("0-1,3", "0-1,3")],
    "pids_limit": [("none", None), ("10", 10)],
    "disk": [("1g", 1 << 30)],
    "storage": [("disk", "disk")],
    "shm_size": [("1m", M)],
    "timeout": [("30", 30.0)],
    "network": [("none", "none"), ("host", "host")],
    "hostname": [("db", "db")],
    "env": [
        ("A=1,B=2", {"A": "1", "B": "2"}),
        ("A=1,2,B=x,", {"A": "1,2", "B": "x,"}),
        ("\nA=1,2\nB=3\n", {"A": "1,2", "B": "3"}),
    ],
    "user": [("1:2", "1:2")],
    "workdir": [("/srv", "/srv")],
    "volumes": [
        ("./a:/a, /b:/b:ro", (Volume("./a", "/a"), Volume("/b", "/b", read_only=True))),
        ("\n./a:/a\n/b,c:/b\n", (Volume("./a", "/a"), Volume("/b,c", "/b"))),
    ],
    "read_only": [("on", True)],
    "cap_add": [("NET_ADMIN,sys_time", ("CAP_NET_ADMIN", "CAP_SYS_TIME"))],
    "cap_drop": [("ALL", ("ALL",)), ("none", ())],
    "ulimits": [("nofile=1024:2048, core=0", {"nofile": (1024, 2048), "core": (0, 0)})],
    "security_opt": [("no-new-privileges:false", ("no-new-privileges:false",))],
    "privileged": [("True", True)],
}


@pytest.mark.parametrize(
    ("key", "text", "canonical"),
    [(key, text, canonical) for key, cases in TEXTS.items() for text, canonical in cases],
)
def test_every_key_is_readable_from_one_text(key, text, canonical):
    """Each key can be read from text, and its canonical value is accepted too."""
    value = from_text(key, text)
    assert canonical == value
    assert value == getattr(
        Settings.of(**{key: value, **({"memory": "1g"} if key == "memory_swap" else {})}), key
    )


def test_the_texts_cover_every_key():
    """Each key can be set by an ini file."""
    assert set(KEYS) == set(TEXTS)


@pytest.mark.parametrize(
    ("key", "text"),
    [("memory", "lots"), ("nothing", ""), ("nothing", "none"), ("volumes", "none:/x")],
)
def test_a_wrong_text_is_refused(key, text):
    """The error for a wrong text names its key."""
    with pytest.raises(SettingsError, match=f"^{key}="):
        from_text(key, text)


def test_every_key_is_described():
    """Each field except `given` has a key with its documentation, and seven keys are options."""
    assert [one.name for one in fields(Settings) if one.name != "given"] == list(KEYS)
    assert all(key.form and key.default and key.meaning for key in KEYS.values())
    assert {"image", "memory", "cpus", "disk", "storage", "timeout", "network"} == {
        key.name for key in KEYS.values() if key.option
    }


values = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.integers(6 * M, 1 << 50),
        "cpus": st.floats(0.01, 8192),
        "cpuset": st.sets(st.integers(0, 8191), min_size=1, max_size=8).map(
            lambda cpus: ",".join(map(str, cpus))
        ),
        "pids_limit": st.integers(-1, 4_194_304),
        "env": st.dictionaries(
            st.from_regex(r"\A[A-Z_]{1,8}\Z"), st.text().filter(lambda text: "\0" not in text)
        ),
        "cap_add": st.lists(st.sampled_from(CAPABILITIES)),
        "ulimits": st.dictionaries(st.sampled_from(ULIMITS), st.integers(-1, 1 << 40)),
        "volumes": st.just(["/a:/b:ro"]),
        "privileged": st.booleans(),
    },
)


@given(values)
def test_settings_survive_json_and_pickle(raw):
    """Settings that were sent to another process are equal there, including `given`."""
    settings = Settings.of(**raw)
    again = Settings.of(**json.loads(json.dumps(settings.raw())))
    assert settings == again == pickle.loads(pickle.dumps(settings))
    assert hash(settings) == hash(again)
    assert settings.given == again.given


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(KEYS)), anything)
def test_a_wrong_value_raises_nothing_but_a_settings_error(key, value):
    """Any value is either accepted or refused with a SettingsError."""
    try:
        Settings.of(**{key: value})
    except SettingsError as error:
        assert key == error.key  # noqa: PT017 - no exception is right too


def test_settings_are_frozen():
    """Neither the settings nor their mappings can be changed."""
    settings = Settings.of(env={"A": "1"})
    with pytest.raises(AttributeError):
        settings.memory = 1
    with pytest.raises(TypeError):
        settings.env["A"] = "2"
