"""Settings: every key in every accepted form, and the errors for all others."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from setting_values import BAD, GOOD, NO_SIZES, SIZES, TEXTS

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings.settings import (
    CAPABILITIES,
    KEYS,
    ULIMITS,
    FrozenMap,
    Settings,
    from_text,
    parse_size,
)

#: Hypothesis limits the time of each example, which a busy machine exceeds.
untimed = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


M = 1 << 20


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_have_docker_s_binary_units(text, size):
    """A size has the same meaning as on docker's command line."""
    assert size == parse_size(text)


@pytest.mark.parametrize("wrong", NO_SIZES)
def test_wrong_sizes_are_refused(wrong):
    """A size that docker refuses is refused with the accepted form."""
    with pytest.raises(SettingsError, match="512m"):
        parse_size(wrong)


@untimed
@given(st.integers(0, 1 << 62))
def test_a_number_of_bytes_is_not_changed(number):
    """A number of bytes is read exactly, as an int and as text."""
    assert number == parse_size(number) == parse_size(str(number)) == parse_size(f"{number}b")


@pytest.mark.parametrize(
    ("key", "written", "canonical"),
    [(key, written, canonical) for key, cases in GOOD.items() for written, canonical in cases],
)
def test_every_form_becomes_the_canonical_value(key, written, canonical):
    """Each accepted form of a value is read as the same canonical value, of the same type."""
    value = getattr(Settings.of(**{key: written}), key)
    assert canonical == value
    assert isinstance(value, type(canonical) if not isinstance(canonical, dict) else FrozenMap)


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


@untimed
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


@untimed
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
