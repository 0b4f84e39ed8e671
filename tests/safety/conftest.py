"""How an attack gets inside: as a program that init executes, and as a function in a fork of this
process.
"""

from __future__ import annotations

import dataclasses

import pytest
from boxes import box, busybox_root
from safety.ways import attack

from pytest_sandbox.container import build_spec
from pytest_sandbox.container import container as room

__all__ = ["box", "busybox_root"]


@pytest.fixture(params=["run", "call"])
def inside(request, box):
    """An attack by either way into a container of default settings."""
    return lambda name, *arguments: attack(box, request.param, name, *arguments)


@pytest.fixture(params=["run", "call"])
def without(request, monkeypatch):
    """An attack in a container from whose spec a protection was taken, to see that it is what stops
    the attack.
    """

    def go(changes, name, *arguments, **settings):
        original = build_spec.spec_of
        with monkeypatch.context() as patch:
            patch.setattr(
                build_spec,
                "spec_of",
                lambda *one, **two: dataclasses.replace(original(*one, **two), **changes),
            )
            with room.Container(**settings) as container:
                return attack(container, request.param, name, *arguments)

    return go
