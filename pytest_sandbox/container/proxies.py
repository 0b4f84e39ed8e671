"""The proxies of the environment, for containers whose connections are forwarded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["without_proxies"]

_NAMES: Final = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")


def without_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Return empty values for the proxies of the environment: the forwarder uses them, and inside
    they cannot be connected to.
    """
    return {
        name: ""
        for lower in _NAMES
        for name in (lower, lower.upper())
        if name not in env and os.environ.get(name)
    }
