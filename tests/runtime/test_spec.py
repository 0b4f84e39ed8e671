"""The specification of a container as JSON."""

from __future__ import annotations

import json

import pytest

from pytest_sandbox import SandboxError
from pytest_sandbox.linux.cgroup.limits import CgroupLimits
from pytest_sandbox.runtime.spec import LAYER_HOLDER, Spec
from pytest_sandbox.settings.settings import Settings


def test_a_spec_as_json():
    """A spec that was sent as JSON is equal to the original."""
    spec = Spec(
        lower=("/a", "/b"),
        above=(("", f"{LAYER_HOLDER}key/0/upper"),),
        volumes=(("/x", "/y", True),),
        ulimits=(("nofile", 1, 2),),
        limits=CgroupLimits(memory=1 << 20, device_rates=(("device_read_bps", "/dev/sda", 1),)),
    )
    assert spec == Spec.from_json(json.loads(json.dumps(spec.to_json())))


@pytest.mark.parametrize("change", [{"new_field": 1}, {"limits": {"new_limit": 1}}], ids=str)
def test_a_spec_of_another_version(change):
    """A spec with unknown fields is an error that says what to do."""
    with pytest.raises(SandboxError, match="another version"):
        Spec.from_json({**Spec().to_json(), **change})


def test_a_spec_without_limits():
    """So is one without a field that this version needs."""
    data = Spec().to_json()
    del data["limits"]
    with pytest.raises(SandboxError, match="another version"):
        Spec.from_json(data)


def test_the_layers_that_the_layer_holder_has():
    """Each key is listed once, and paths in the store are not."""
    above = (
        ("", f"{LAYER_HOLDER}one/0/upper"),
        ("/home", f"{LAYER_HOLDER}one/1/upper"),
        ("", "/store/layer"),
        ("", f"{LAYER_HOLDER}two/0/upper"),
    )
    assert ("one", "two") == Spec(above=above).held_layers


def test_limits_of_settings():
    """Without memory_swap the limit on memory plus swap is the limit on memory, as in docker."""
    limits = CgroupLimits.of(Settings(memory="64m", pids_limit=None))
    assert CgroupLimits(memory=64 << 20, swap_limit=64 << 20) == limits
