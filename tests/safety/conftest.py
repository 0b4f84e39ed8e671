"""Fixtures that run an attack in a container with and without a protection."""

from __future__ import annotations

import dataclasses

import pytest
from boxes import box, busybox_root
from safety.ways import attack

from pytest_sandbox.container import build_spec
from pytest_sandbox.container import container as container_module

__all__ = ["box", "busybox_root"]


@pytest.fixture(params=["run", "call"])
def inside(request, box):
    """Run an attack, in each of the ways, in a container with default settings."""
    return lambda name, *arguments: attack(box, request.param, name, *arguments)


@pytest.fixture(params=["run", "call"])
def without(request, monkeypatch):
    """Run an attack in a container whose spec lacks a protection, to prove that it is the
    protection that stops the attack.
    """

    def go(changes, name, *arguments, **settings):
        original = build_spec.spec_of
        with monkeypatch.context() as patch:
            patch.setattr(
                build_spec,
                "spec_of",
                lambda *one, **two: dataclasses.replace(original(*one, **two), **changes),
            )
            with container_module.Container(**settings) as container:
                return attack(container, request.param, name, *arguments)

    return go
