"""Tests of what ctypes provides."""

from __future__ import annotations

import pytest

from pytest_sandbox.linux import native_code


def test_a_dictionary_has_another_version_after_each_change():
    """A version that stays the same would hide a replaced function."""
    if native_code.version_tag({}) is None:
        pytest.skip("this interpreter's dictionaries have no versions")
    changed = {"a": 1, "b": 2}
    tag = native_code.version_tag(changed)
    versions = [tag.value]
    for change in (
        lambda: changed.update(a=3),
        lambda: changed.pop("a"),
        lambda: changed.setdefault("a", 1),
        lambda: changed.__setitem__("a", len),
        lambda: changed.update({str(n): n for n in range(1000)}),
        changed.clear,
    ):
        change()
        versions.append(tag.value)
    assert len(set(versions)) == len(versions)
    _ = changed.get("a"), list(changed), changed.copy()
    assert tag.value == versions[-1]
