"""Fixtures for tests of containers."""

from __future__ import annotations

from boxes import box, busybox_root, net

__all__ = ["box", "busybox_root", "net"]
