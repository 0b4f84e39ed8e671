"""The public interface: the documented names, and the arguments that they accept."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess

import pytest

import pytest_sandbox
from pytest_sandbox import Change, Container, Image, Network, Stats
from pytest_sandbox.container.popen import Popen
from pytest_sandbox.plugin import hookspecs
from pytest_sandbox.settings.settings import KEYS

# The keyword arguments.
RUN = "input capture_output text encoding env cwd user timeout check stdin stdout stderr"
CALLS: dict[str, tuple[int, str]] = {
    "start": (0, ""),
    "close": (0, ""),
    "run": (1, RUN),
    "popen": (1, "stdin stdout stderr text encoding errors env cwd user bufsize pass_fds umask"),
    "call": (3, "timeout anything"),
    "read_bytes": (1, ""),
    "read_text": (1, "encoding errors"),
    "write_bytes": (2, ""),
    "write_text": (2, "encoding errors"),
    "exists": (1, ""),
    "listdir": (1, ""),
    "mkdir": (1, "parents exist_ok"),
    "copy_in": (2, "owners"),
    "copy_out": (2, "owners"),
    "stats": (0, ""),
    "diff": (0, ""),
    "commit": (0, "name message author changes"),
    "pause": (0, ""),
    "unpause": (0, ""),
    "kill": (1, ""),
}
POPEN = "poll wait communicate send_signal terminate kill __enter__ __exit__"
SETTINGS = (
    "image memory memory_swap memory_high cpus cpuset pids_limit device_read_bps device_write_bps "
    "device_read_iops device_write_iops "
    "disk storage shm_size timeout network publish hostname extra_hosts env user workdir volumes "
    "tmpfs devices "
    "gpus read_only cap_add cap_drop ulimits security_opt privileged artifacts artifacts_limit "
    "alone"
)
OPTIONS = "image memory cpus disk storage timeout network"
STATS = (
    "memory_current memory_peak memory_limit cpu_seconds cpu_throttled_seconds pids_current "
    "pids_peak oom_kills io_read_bytes io_write_bytes"
)
PRESSURE = "cpu_pressure_seconds memory_pressure_seconds io_pressure_seconds"


@pytest.mark.parametrize("name", CALLS)
def test_the_methods_of_a_container(name):
    """Each method accepts its documented arguments."""
    positional, keywords = CALLS[name]
    arguments = [None] * (positional + 1)
    inspect.signature(getattr(Container, name)).bind(*arguments, **dict.fromkeys(keywords.split()))


def test_the_attributes_of_a_container():
    """A container has its attributes before it starts."""
    container = Container(memory="64m")
    assert ("created", "", 64 << 20) == (container.status, container.id, container.settings.memory)
    assert {"pid", "hostname"} <= set(dir(container))


def test_run_takes_the_arguments_of_subprocess_by_their_names():
    """run() has all keyword arguments of subprocess.run."""
    theirs = {
        name
        for name, one in inspect.signature(subprocess.run).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    }
    assert set() == theirs - set(inspect.signature(Container.run).parameters)


def test_popen_is_a_subprocess_popen():
    """Popen is a subclass of subprocess.Popen with its methods."""
    assert issubclass(Popen, subprocess.Popen)
    assert [] == [name for name in POPEN.split() if not hasattr(Popen, name)]


def test_the_settings_have_their_names_and_options():
    """The settings are in the order of the documentation, and seven are options."""
    assert SETTINGS.split() == list(KEYS)
    assert OPTIONS.split() == [key.name for key in KEYS.values() if key.option]


def test_the_values_have_their_fields():
    """Stats and Change have their documented fields."""
    assert [*STATS.split(), *PRESSURE.split()] == [
        field.name for field in dataclasses.fields(Stats)
    ]
    assert {"path", "kind"} == {field.name for field in dataclasses.fields(Change)}
    assert Change(kind="added", path="/a") == Change("/a", "added")


@pytest.mark.parametrize(
    ("name", "positional"), {"pull": 1, "load": 1, "get": 1, "list": 0}.items()
)
def test_images_are_had_from_their_class(name, positional):
    """An image is pulled, loaded, found and listed by the class."""
    inspect.signature(getattr(Image, name)).bind(*[None] * positional)


def test_an_image_says_what_it_is():
    """The names of an image's own."""
    named = {*dir(Image), *(field.name for field in dataclasses.fields(Image))}
    assert set() == {"reference", "id", "layers", "history", "config", "size", "remove"} - named


def test_a_network_is_made_started_and_closed():
    """A network's names, and where a container says its address."""
    net = Network("shared", subnet="172.30.0.0/24", internal=True)
    assert ("shared", "172.30.0.0/24", {}) == (net.name, net.subnet, net.addresses)
    assert set() == {"start", "close", "__enter__", "__exit__"} - set(dir(net))
    assert net is Container(network=net).settings.network
    assert None is Container(network=net).ip_address


def test_the_hooks_have_their_arguments():
    """The hooks that a conftest file may define."""
    assert {
        "pytest_sandbox_settings": ["item", "settings"],
        "pytest_sandbox_started": ["item", "container"],
        "pytest_sandbox_outcome": ["item", "outcome", "stats"],
        "pytest_sandbox_discard": ["item", "container"],
        "pytest_sandbox_carry": ["item"],
        "pytest_sandbox_carried": ["item", "data"],
    } == {
        name: list(inspect.signature(hook).parameters)
        for name, hook in vars(hookspecs).items()
        if name.startswith("pytest_sandbox_")
    }


def test_the_errors_are_in_the_face():
    """Whoever catches an error can import it."""
    names = (
        "SandboxError SettingsError UnsupportedError ImageError SetupError ContainerStopped "
        "OutOfMemory"
    )
    assert [] == [name for name in names.split() if name not in pytest_sandbox.__all__]
