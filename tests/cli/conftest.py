"""The room's fixtures."""

from __future__ import annotations

from boxes import box

__all__ = ["box"]
