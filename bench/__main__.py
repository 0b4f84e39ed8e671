"""``python -m bench [ROW...]``: measure, and print the tables of docs/performance.md."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from bench import contestants, table
from bench.faults import faults
from bench.jobs import jobs, jobs_memory, scopes
from bench.pages import pages
from bench.plugin import plugin
from bench.rows import QUICK, ROWS, Bench, Scale, run_rows
from bench.services import services

if TYPE_CHECKING:
    from bench.table_row import Row

ROWS["pages"] = pages
ROWS["plugin"] = plugin
ROWS["faults"] = faults
ROWS["services"] = services
ROWS["jobs"] = jobs
ROWS["jobs-memory"] = jobs_memory
ROWS["scopes"] = scopes


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"which rows (all): {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few rounds of each row: shows that it works, and measures nothing",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document instead of the tables"
    )
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return options


def show(row: Row) -> None:
    """Print the table of a row."""
    print(table.markdown(row), flush=True)


def main() -> int:
    """Run the chosen rows."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
    facts, rows = table.machine(), []
    if not options.json:
        print(table.heading(facts), flush=True)
    with contestants.floor() as commands, contestants.peers() as (working, failing):
        for row in run_rows(
            Bench(commands, working, failing, QUICK if options.quick else Scale()),
            options.rows or list(ROWS),
        ):
            rows.append(row)
            if not options.json:
                show(row)
    if options.json:
        print(table.as_json(rows, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
