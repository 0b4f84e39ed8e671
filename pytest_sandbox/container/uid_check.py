"""Which UIDs the containers of an unprivileged user have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import userns

if TYPE_CHECKING:
    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["check_uid"]


def check_uid(launcher: LauncherClient, spec: Spec, uid: int) -> None:
    """Raise :class:`UnsupportedError` for a UID that the containers of this launcher do not have.

    Those of the machine's root have all; others have the user's own and those of subuid(5), or
    what the user namespace around pytest has.
    """
    extents = userns.read_map("uid", launcher.process.pid if launcher.builder_fd >= 0 else None)
    if launcher.builder_fd >= 0 and not spec.is_on_host:
        extents = userns.root_map(extents, os.geteuid())
    if any(first <= uid < first + count for first, _outside, count in extents):
        return
    from pytest_sandbox import host

    raise UnsupportedError(
        f"the UID {uid}, which this user's containers do not have,",
        host.find("subordinate ids").remedy
        or "Give this user a longer range in /etc/subuid and /etc/subgid (subuid(5)).",
    )
