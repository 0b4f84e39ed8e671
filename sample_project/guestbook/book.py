"""The book: a file with one line of JSON for each signature."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Signature:
    name: str
    words: str


def path() -> Path:
    return Path("~/.guestbook/signatures").expanduser()


def sign(name: str, words: str) -> None:
    path().parent.mkdir(parents=True, exist_ok=True)
    with path().open("a") as book:
        print(json.dumps(asdict(Signature(name, words))), file=book)


def signatures() -> list[Signature]:
    if not path().exists():
        return []
    return [Signature(**json.loads(line)) for line in path().read_text().splitlines()]
