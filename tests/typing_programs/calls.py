"""What type checkers accept, and what they reject: each line with the comment ``# wrong`` is an
error.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, assert_type

from pytest_sandbox import Container, ContainerFactory, Image, Network, Settings, SettingsKwargs
from pytest_sandbox.container.popen import Popen

if TYPE_CHECKING:
    from pathlib import Path


def add(one: int, two: int = 0) -> int:
    return one + two


def settings(directory: Path, image: Image) -> None:
    Settings(
        memory="512m", cpus=1.5, pids_limit=None, ulimits={"nofile": (1, "2")}, volumes=["/a:/b"]
    )
    Settings(memory=512, image=directory, network="host", env={"A": "1"}, user=1000, read_only=True)
    Container(memory="512m", image=image, network=Network(), storage="disk")
    Container(Settings(), timeout=3)
    Settings().replace(cpuset=0, cap_add=["NET_ADMIN"])
    common: SettingsKwargs = {"memory": "1g"}
    Container(**common)
    Container(memroy=1)  # wrong
    Container(memory=[])  # wrong
    Container(storage="tape")  # wrong
    Settings(memroy="512m")  # wrong
    Settings(network=443)  # wrong
    Settings().replace(memroy=1)  # wrong
    Settings.of(memroy=1)  # wrong
    bad: SettingsKwargs = {"memroy": 1}  # wrong
    Container(**bad)


def factory(container_factory: ContainerFactory) -> None:
    assert_type(container_factory(memory="256m"), Container)
    container_factory(memroy=1)  # wrong


def run(container: Container, keywords: dict[str, Any]) -> None:
    assert_type(container.run(["true"]), subprocess.CompletedProcess[bytes])
    assert_type(
        container.run(["true"], text=True, input="x", check=True), subprocess.CompletedProcess[str]
    )
    assert_type(
        container.run("true", shell=True, encoding="utf-8"), subprocess.CompletedProcess[str]
    )
    container.run(
        ["true"], cwd="/", env={"A": "1"}, user="root", stdout=subprocess.PIPE, timeout=1.5
    )
    container.run(["true"], **keywords)
    container.run(["true"], chekc=True)  # wrong
    container.run([1])  # wrong


def popen(container: Container) -> None:
    assert_type(container.popen(["true"]), Popen[bytes])
    assert_type(container.popen(["true"], text=True), Popen[str])
    container.popen(["true"], stdni=1)  # wrong


def call(container: Container) -> None:
    assert_type(container.call(add, 1), int)
    assert_type(container.call(add, 1, two=2), int)
    assert_type(container.call(add, 1, timeout=3), int)
    container.call(add, "wrong")  # wrong
    container.call(add)  # wrong
    container.call(add, 1, three=3)  # wrong
