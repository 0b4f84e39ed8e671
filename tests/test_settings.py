"""Settings: every key in every form that it is written in, and every wrong one named."""

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

# The table of docker's go-units (RAMInBytes), with our answers.
SIZES = {
    "32": 32, "32b": 32, "32B": 32, "32k": 32 << 10, "32K": 32 << 10, "32kb": 32 << 10, "32Kb": 32 << 10, "32KiB": 32 << 10,
    "32Mb": 32 << 20, "32Gb": 32 << 30, "32Tb": 32 << 40, "32Pb": 32 << 50, "32PB": 32 << 50, "32P": 32 << 50,
    "32.": 32, "32.b": 32, "32.3": 32, "32.5kB": 33280, "32.5 kB": 33280, "32.3 mb": 33869004, "0.3 K": 307, ".3kB": 307, "1 b": 1,
    "512m": 536870912, " 1g\n": 1 << 30, "0": 0,
}  # fmt: skip
NO_SIZES = [
    "", "hello", ".", ". ", " ", "  ", "-32", "-32b", "32bb", "32 m b", "32  mm", "32u", "32bm", "1e3", "1_000", "0x10", "inf", "nan", "32 kk",
    "٣k", "9999999999999p", "9" * 5000, None, 1.5, True, b"1m", -1, 1 << 63, ["1m"],
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_are_docker_s_binary_units(text, size):
    """A size means to us what it means to docker's command line."""
    assert size == parse_size(text)


@pytest.mark.parametrize("wrong", NO_SIZES)
def test_wrong_sizes_are_refused(wrong):
    """What docker refuses as a size is an error that names the form."""
    with pytest.raises(SettingsError, match="512m"):
        parse_size(wrong)


@given(st.integers(0, 1 << 62))
def test_a_number_of_bytes_is_itself(number):
    """Bytes are read the same as an int and as text, exactly."""
    assert number == parse_size(number) == parse_size(str(number)) == parse_size(f"{number}b")


# key, what a user writes, the canonical value
GOOD = [
    ("image", "host", "host"), ("image", "debian:12", "debian:12"), ("image", Path("/srv/root"), "/srv/root"),
    ("memory", "512m", 512 * M), ("memory", 512 * M, 512 * M), ("memory", "6m", 6 * M),
    ("memory_high", "48m", 48 * M),
    ("device_read_bps", ["/dev/sda:1mb", "/dev/sdb:512"], {"/dev/sda": M, "/dev/sdb": 512}), ("device_read_bps", {"/dev/sda": "1.5k"}, {"/dev/sda": 1536}),
    ("device_write_bps", ["/dev/odd:name:2k"], {"/dev/odd:name": 2048}), ("device_read_iops", ["/dev/sda:100"], {"/dev/sda": 100}),
    ("device_write_iops", {"/dev/sda": 7}, {"/dev/sda": 7}), ("device_write_iops", [], {}),
    ("cpus", 1.5, 1.5), ("cpus", 2, 2.0), ("cpus", "0.01", 0.01),
    ("cpuset", "0-1", "0-1"), ("cpuset", "3,0-1, 1-2", "0-3"), ("cpuset", "5,0-1,3", "0-1,3,5"), ("cpuset", 0, "0"),
    ("pids_limit", 256, 256), ("pids_limit", "256", 256), ("pids_limit", -1, None), ("pids_limit", 0, None), ("pids_limit", None, None),
    ("disk", "1g", 1 << 30), ("storage", "disk", "disk"), ("storage", "memory", "memory"), ("shm_size", "128m", 128 * M),
    ("timeout", 30, 30.0), ("timeout", 0.5, 0.5), ("timeout", "2.5", 2.5),
    ("network", "none", "none"), ("network", "host", "host"),
    ("hostname", "db", "db"), ("hostname", "a-1.example.org", "a-1.example.org"), ("hostname", "a" * 63, "a" * 63),
    ("env", {"A": "1", "B": ""}, {"A": "1", "B": ""}), ("env", ["A=1", "B=x=y"], {"A": "1", "B": "x=y"}),
    ("user", "1000:1000", "1000:1000"), ("user", 1000, "1000"), ("user", "www-data", "www-data"), ("user", "a.b:users", "a.b:users"),
    ("workdir", "/srv", "/srv"), ("workdir", Path("/srv"), "/srv"),
    ("volumes", ["./out:/out", "/data:/data/:ro"], (Volume("./out", "/out"), Volume("/data", "/data", read_only=True))),
    ("volumes", ["/a:/b:z", "/c:/d:Z", "/e:/f:cached", "/g:/h:ro,delegated"],
     (Volume("/a", "/b"), Volume("/c", "/d"), Volume("/e", "/f"), Volume("/g", "/h", read_only=True))),
    ("volumes", "/a:/b:ro,z,/c:/d:consistent, /e:/f", (Volume("/a", "/b", read_only=True), Volume("/c", "/d"), Volume("/e", "/f"))),
    ("volumes", [Volume("/a", "/b")], (Volume("/a", "/b"),)), ("volumes", "~/c:/c:rw", (Volume("~/c", "/c"),)),
    ("read_only", True, True), ("read_only", "false", False), ("privileged", "yes", True),
    ("cap_add", ["net_admin", "CAP_SYS_TIME", "NET_ADMIN"], ("CAP_NET_ADMIN", "CAP_SYS_TIME")), ("cap_drop", "all", ("ALL",)),
    ("ulimits", {"nofile": 1024, "core": (0, -1)}, {"nofile": (1024, 1024), "core": (0, -1)}),
    ("ulimits", {"nofile": "10:20", "stack": "unlimited", "cpu": [1, "unlimited"]}, {"nofile": (10, 20), "stack": (-1, -1), "cpu": (1, -1)}),
    ("security_opt", ["seccomp=unconfined", "no-new-privileges=false"], ("seccomp=unconfined", "no-new-privileges:false")),
    ("security_opt", ["no-new-privileges:true"], ("no-new-privileges",)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "written", "canonical"), GOOD)
def test_every_form_becomes_the_canonical_value(key, written, canonical):
    """A key's value is the same however it was written, and its type is the one that the table
    says.
    """
    value = getattr(Settings.of(**{key: written}), key)
    assert canonical == value
    assert isinstance(value, type(canonical) if not isinstance(canonical, dict) else FrozenMap)


BAD = [
    *[(key, wrong) for key in ("memory", "disk", "shm_size") for wrong in ("lots", "-1", -1, 0, "0", 1.5, True, [], {}, b"6m", object())],
    *[(key, wrong) for key in ("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops") for wrong in (["/dev/sda"], ["sda:1"], ["/dev/sda:"], ["/dev/sda:0"], ["/dev/sda:1"], ["/dev/sda:-1"], {"/dev/sda": 1.5}, {"/dev/sda": True}, {1: 1}, ["/dev/sda:3", "/dev/sda:2"], [1], 1, [{"/dev/sda": 1}])],
    *[(key, wrong) for key in ("device_read_iops", "device_write_iops") for wrong in (["/dev/sda:1mb"], {"/dev/sda": 1 << 32})],
    ("memory_high", "5m"), ("memory_high", "-1"),
    ("memory", "5m"), ("memory_swap", -2), ("memory_swap", []),
    *[("cpus", wrong) for wrong in (0, -1, "two", float("nan"), float("inf"), True, [], 0.001, 1e9)],
    *[("cpuset", wrong) for wrong in ("", "a", "1-0", "0-", "-1", "0,,1", "0-7:2/4", "99999", 1.5, [0, 1])],
    *[("pids_limit", wrong) for wrong in (-2, "many", 1.5, True, 4_194_305, [])],
    *[("timeout", wrong) for wrong in (0, -1, "soon", float("nan"), float("inf"), True, [])],
    *[("storage", wrong) for wrong in ("tmpfs", "", 1, [])],
    *[("network", wrong) for wrong in ("bridge", "", "NONE", "Network", 1, True, [], {}, b"none", object())],
    *[("image", wrong) for wrong in ("", 1, True, [], {}, b"x", object(), "a\0b")],
    *[("hostname", wrong) for wrong in ("", "-a", "a-", "a_b", "a..b", "a" * 64, "ü", 1, "a\n")],
    *[("env", wrong) for wrong in ({"A": 1}, {1: "A"}, {"": "x"}, {"A=B": "x"}, {"A": "\0"}, ["A"], "A", 1, [1], {"A": None})],
    *[("user", wrong) for wrong in ("", ":", "a:b:c", "1000:", -1, 1.5, [], 2**32 - 1, str(2**32 - 1), "a b")],
    *[("workdir", wrong) for wrong in ("", "srv", "./srv", 1, "/a\0")],
    *[("volumes", wrong) for wrong in (["out:/out"], ["/data"], ["/a:b"], ["/a:/b:rx"], ["/a:/b:ro:z"], ["/a:/b:ro,rw"], ["/a:/b:z,"], ["/a:/b:U"], ["/a:/"], ["/a:/b", "/c:/b/"], [1], 1, {"/a": "/b"}, [""])],
    *[(key, wrong) for key in ("read_only", "privileged") for wrong in (2, 0, 1, "maybe", "", [])],
    *[(key, wrong) for key in ("cap_add", "cap_drop") for wrong in (["FLY"], [1], 1, {"CHOWN": 1}, ["CAP_ALL"])],
    *[("ulimits", wrong) for wrong in ({"nofiles": 1}, {"nofile": (2, 1)}, {"nofile": (-1, 1)}, {"nofile": (1, 2, 3)}, {"nofile": ()}, {"nofile": "x"}, {"nofile": -2}, {"nofile": 1.5}, {"nofile": [[1], 2]}, {1: 1}, ["nofile"], 3)],
    *[("security_opt", wrong) for wrong in (["apparmor=x"], ["seccomp=/a.json"], ["no-new-privileges:maybe"], [1], 1, ["seccomp=unconfined", "seccomp=builtin"], ["no-new-privileges", "no-new-privileges:false"])],
]  # fmt: skip


@pytest.mark.parametrize(("key", "wrong"), BAD)
def test_a_wrong_value_names_key_value_and_form(key, wrong):
    """Whatever is wrong, the error is a ValueError that names the key, the value and what would be
    accepted.
    """
    with pytest.raises(SettingsError) as raised:
        Settings.of(**{key: wrong})
    assert key == raised.value.key
    assert raised.value.accepted
    assert f"{key}={raised.value.value!r}" in str(raised.value)


def test_the_cases_cover_every_key():
    """No key is left without a good and a bad case."""
    assert set(KEYS) - {"memory_swap"} == {key for key, *_ in GOOD}
    assert set(KEYS) == {key for key, _ in BAD}


def test_an_unknown_key_is_told_what_was_meant():
    """A misspelt key is refused with the name that is near it, and all names."""
    with pytest.raises(SettingsError, match=r"did you mean memory\?.*pids_limit"):
        Settings.of(memroy="1g")


@pytest.mark.parametrize(
    ("key", "wrong", "meant"),
    [("cap_add", ["NET_AMIN"], "CAP_NET_ADMIN"), ("ulimits", {"nofiles": 1}, "nofile")],
)
def test_a_misspelt_name_is_told_what_was_meant(key, wrong, meant):
    """A misspelt capability or limit is refused with the name that is near it."""
    with pytest.raises(SettingsError, match=f"did you mean {meant}"):
        Settings.of(**{key: wrong})


def test_a_named_volume_is_told_how_to_write_a_directory():
    """Docker's named volumes are refused with the path that was probably meant."""
    with pytest.raises(SettingsError, match=r"\./out:/out"):
        Settings.of(volumes=["out:/out"])


def test_none_is_the_default():
    """None for every key gives the defaults, but for pids_limit, where it lifts the limit."""
    assert Settings() == Settings.of(**dict.fromkeys(set(KEYS) - {"pids_limit"}))
    assert Settings.of(pids_limit=None).pids_limit is None


def test_objects_of_other_rooms_pass():
    """An image (known by its layers) and a network (known by its subnet) are kept as they are."""
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
    """Without memory_swap there is no swap; -1 is no limit; else it is docker's sum."""
    assert limit == Settings.of(**raw).swap_limit


@pytest.mark.parametrize("raw", [{"memory_swap": "64m"}, {"memory": "64m", "memory_swap": "32m"}])
def test_memory_swap_must_agree_with_memory(raw):
    """A sum below its part, or without it, is refused under the name memory_swap."""
    with pytest.raises(SettingsError, match=r"^memory_swap="):
        Settings.of(**raw)


def test_replace_keeps_the_rest_and_what_follows_from_it():
    """New memory brings its own swap limit with it, and the other keys stay."""
    changed = Settings.of(memory="64m", cpus=1).replace(memory="128m")
    assert (128 * M, 128 * M, 1.0) == (changed.memory, changed.swap_limit, changed.cpus)


def test_given_tells_what_was_asked_for():
    """The keys that somebody named are known, even where the value is the default; None takes a key
    back.
    """
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
def test_security_follows_from_the_options(raw, seccomp, no_new_privileges):
    """Both protections are on unless they are named off, or all are by privileged."""
    settings = Settings.of(**raw)
    assert (seccomp, no_new_privileges) == (settings.seccomp, settings.no_new_privileges)


TEXTS = [
    ("image", "debian:12", "debian:12"), ("memory", "512m", 512 * M), ("memory", "none", None), ("memory", "", None), ("memory_swap", "-1", -1),
    ("memory_high", "none", None), ("device_read_bps", "/dev/sda:1mb,/dev/sdb:2m", {"/dev/sda": M, "/dev/sdb": 2 * M}), ("device_write_bps", "", {}),
    ("device_read_iops", "\n/dev/sda:3\n/dev/a,b:2\n", {"/dev/sda": 3, "/dev/a,b": 2}), ("device_write_iops", "none", {}),
    ("cpus", "1.5", 1.5), ("cpuset", "0-1,3", "0-1,3"), ("pids_limit", "none", None), ("pids_limit", "10", 10), ("disk", "1g", 1 << 30),
    ("storage", "disk", "disk"), ("shm_size", "1m", M), ("timeout", "30", 30.0), ("network", "none", "none"), ("network", "host", "host"),
    ("hostname", "db", "db"), ("env", "A=1,B=2", {"A": "1", "B": "2"}), ("env", "A=1,2,B=x,", {"A": "1,2", "B": "x,"}),
    ("env", "\nA=1,2\nB=3\n", {"A": "1,2", "B": "3"}), ("user", "1:2", "1:2"), ("workdir", "/srv", "/srv"),
    ("volumes", "./a:/a, /b:/b:ro", (Volume("./a", "/a"), Volume("/b", "/b", read_only=True))),
    ("volumes", "\n./a:/a\n/b,c:/b\n", (Volume("./a", "/a"), Volume("/b,c", "/b"))), ("read_only", "on", True),
    ("cap_add", "NET_ADMIN,sys_time", ("CAP_NET_ADMIN", "CAP_SYS_TIME")), ("cap_drop", "ALL", ("ALL",)), ("cap_drop", "none", ()),
    ("ulimits", "nofile=1024:2048, core=0", {"nofile": (1024, 2048), "core": (0, 0)}), ("security_opt", "no-new-privileges:false", ("no-new-privileges:false",)),
    ("privileged", "True", True),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "canonical"), TEXTS)
def test_every_key_is_readable_from_one_text(key, text, canonical):
    """An ini setting, an option and the command line reach every key; the canonical value passes
    again.
    """
    value = from_text(key, text)
    assert canonical == value
    assert value == getattr(
        Settings.of(**{key: value, **({"memory": "1g"} if key == "memory_swap" else {})}), key
    )


def test_the_texts_cover_every_key():
    """No key is left that an ini file cannot reach."""
    assert set(KEYS) == {key for key, *_ in TEXTS}


@pytest.mark.parametrize(
    ("key", "text"),
    [("memory", "lots"), ("nothing", ""), ("nothing", "none"), ("volumes", "none:/x")],
)
def test_a_wrong_text_is_refused(key, text):
    """A text that cannot be read names its key, as a value does."""
    with pytest.raises(SettingsError, match=f"^{key}="):
        from_text(key, text)


def test_the_table_says_all_of_every_key():
    """The table has a row for every field but `given`, with words for the documentation, and the
    options of the interface.
    """
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
    """What crosses to the launcher or a worker comes out equal, with the knowledge of what was
    asked for.
    """
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
def test_nothing_but_a_settings_error_comes_out(key, value):
    """Whatever a user hands in, it is read or refused; no other exception escapes."""
    try:
        Settings.of(**{key: value})
    except SettingsError as error:
        assert key == error.key  # noqa: PT017 - both ways are right


def test_frozen_values_stay():
    """Neither the settings nor the mappings in them can be changed."""
    settings = Settings.of(env={"A": "1"})
    with pytest.raises(AttributeError):
        settings.memory = 1
    with pytest.raises(TypeError):
        settings.env["A"] = "2"
