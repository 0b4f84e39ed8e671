"""The fixtures of this directory."""

from __future__ import annotations

from boxes import box

__all__ = ["box"]
