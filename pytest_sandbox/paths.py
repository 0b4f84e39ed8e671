"""Where this user's files are: what running sessions need, and images. Nothing here creates or
opens a directory.

The state directory, which holds the locks and control sockets of running sessions, is the first of
these that can be used. The order is the same in every process of a user, so that sessions find
each other:

1. ``/run/pytest-sandbox`` for root; for others ``$XDG_RUNTIME_DIR/pytest-sandbox``, if that is an
   absolute path, and ``/run/user/UID/pytest-sandbox`` (XDG Base Directory Specification;
   pam_systemd(8)),
2. ``/tmp/pytest-sandbox-UID``,
3. ``/dev/shm/pytest-sandbox-UID``,
4. ``/var/tmp/pytest-sandbox-UID``.

A directory can be used if it belongs to this user, nobody else may write to it, and a file can be
written in it. Root ignores ``XDG_RUNTIME_DIR``: under ``sudo -E`` it is another user's.
"""

from __future__ import annotations

import os

__all__ = ["NO_STATE", "images", "states"]

#: What helps a user who has no state directory.
NO_STATE = (
    "Give this user one of these directories, with mode 0700 and room for a file (in an outer "
    "container: mount a tmpfs on /run or /tmp)."
)
_SHARED = ("/tmp", "/dev/shm", "/var/tmp")


def states() -> tuple[str, ...]:
    """Return the directories that may be the state directory, in order of preference."""
    uid = os.geteuid()
    own = ("/run",) if uid == 0 else (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}")
    places = [f"{place}/pytest-sandbox" for place in own if os.path.isabs(place)]
    places += [f"{place}/pytest-sandbox-{uid}" for place in _SHARED]
    return tuple(dict.fromkeys(places))


def images() -> str:
    """Return the directory of the image store: ``$PYTEST_SANDBOX_HOME``, else ``pytest-sandbox``
    below the XDG cache home.
    """
    given = os.environ.get("PYTEST_SANDBOX_HOME")
    if given:
        return os.path.abspath(os.path.expanduser(given))
    cache = os.environ.get(
        "XDG_CACHE_HOME", ""
    )  # a relative one is invalid, and to be ignored (XDG Base Directory Specification)
    return os.path.join(
        cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "pytest-sandbox"
    )
