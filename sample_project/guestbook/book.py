"""The book: one line of JSON for each signature, in one file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Signature:
    name: str
    words: str


def place() -> Path:
    return Path("~/.guestbook/signatures").expanduser()


def sign(name: str, words: str) -> None:
    place().parent.mkdir(parents=True, exist_ok=True)
    with place().open("a") as book:
        print(json.dumps(asdict(Signature(name, words))), file=book)


def signatures() -> list[Signature]:
    if not place().exists():
        return []
    return [Signature(**json.loads(line)) for line in place().read_text().splitlines()]
