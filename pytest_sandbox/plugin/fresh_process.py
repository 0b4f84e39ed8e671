"""The program that a new interpreter runs for ``fresh=True`` (fresh.py).

It is started by its path, so that until it takes over the module search path, modules would also be
found in the directory of this file.
"""

from __future__ import annotations

import os
import sys

__all__: list[str] = []


def _main(described: int) -> None:
    sys.path = [one for one in sys.path if one != os.path.dirname(os.path.abspath(__file__))]
    import json

    size = os.fstat(described).st_size
    data = json.loads(os.pread(described, size, 0).decode("utf-8", "surrogateescape"))
    os.close(described)
    sys.path, sys.argv = data["path"], data["argv"]

    from pytest_sandbox.plugin import fresh_plugin

    fresh_plugin.run(data)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
