"""``python -m pytest_sandbox`` is ``pytest-sandbox``."""

from __future__ import annotations

import sys

from pytest_sandbox.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
