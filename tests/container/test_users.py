"""Lookup of UIDs and GIDs for ``user=`` in passwd(5) and group(5)."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox import Container, SettingsError
from pytest_sandbox.runtime import users

PASSWD = "/etc/passwd"


def find(text, passwd="", group=""):
    return users.find(text, {PASSWD: passwd, "/etc/group": group}.__getitem__)


@pytest.mark.parametrize(
    "number", [4294967295, 4294967296, 2147483648, 18446744073709551616, int("9" * 4000)]
)
@pytest.mark.parametrize("form", ["{}", "{}:0", "0:{}", "named", "in-group", "0:big"])
def test_a_uid_above_dockers_maximum_is_refused(form, number):
    """A UID or GID that would wrap to another one, such as root's, is refused."""
    passwd = f"named:x:{number}:0::/:/bin/sh\nin-group:x:1:{number}::/:/bin/sh\n"
    with pytest.raises(SettingsError, match="from 0 to 2147483647"):
        find(form.format(number), passwd, f"big:x:{number}:\n")


def test_the_highest_uid_is_accepted():
    """2147483647, docker's maximum, is accepted."""
    assert users.User(2147483647, 2147483647, (), "/") == find("2147483647:2147483647")


@pytest.mark.parametrize("text", ["\u0660", "²", "-1", "+1", "0x0", " 0", "1e3", "nobody:\u0660"])
def test_only_ascii_digits_are_a_number(text):
    """Digits of other scripts, signs and prefixes are read as names, which do not exist."""
    with pytest.raises(SettingsError, match="an ID, or a name in the container's /etc/"):
        find(text, "nobody:x:65534:65534::/:/bin/sh\n")


@pytest.mark.parametrize("separator", ["\f", "\v", "\r", "\x1c", "\x85", "\u2028"])
def test_only_a_newline_ends_a_line(separator):
    """A GECOS field with another line separator of str.splitlines() does not add a user."""
    with pytest.raises(SettingsError, match="has no 'evil'"):
        find("evil", f"ann:x:1000:1000:Ann{separator}evil:x:0:0::/root:/bin/sh:/home/ann:/bin/sh\n")


def test_lines_are_read_as_by_the_c_library():
    """Comments and invalid lines are skipped, leading blanks are ignored, and a shell may contain a
    colon.
    """
    passwd = (
        "#ann:x:1:1::/:/bin/sh\nann:x:-1:0::/:/bin/sh\nann:x::0::/:/bin/sh\n  "
        "ann:x:1000:100:g:/home/ann:/bin/sh:more\n"
    )
    group = "users:x:100:\nwheel:x:10: bob, ann\n"
    assert users.User(1000, 100, (10,), "/home/ann") == find("ann", passwd, group)
    assert users.User(1000, 10, (), "/home/ann") == find("ann:wheel", passwd, group)


@pytest.mark.needs("containers", "root")
@pytest.mark.vm
@pytest.mark.parametrize("user", ["4294967296", "4294967295", "65534:4294967296", "big"])
def test_no_command_runs_with_a_uid_that_wraps(user):
    """The number is refused before anything is started."""
    with Container() as c:
        c.write_text(PASSWD, "big:x:4294967296:4294967296::/:/bin/sh\n")
        with pytest.raises(SettingsError, match="from 0 to 2147483647"):
            c.run(["id"], user=user)
    assert 0 == os.geteuid()
