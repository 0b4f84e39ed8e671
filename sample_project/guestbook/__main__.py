"""``python -m guestbook serve | stop | sign NAME WORDS | read``."""

from __future__ import annotations

import sys

from guestbook import book, control, server


def main(verb: str, *arguments: str) -> None:
    if verb == "serve":
        server.serve()
    elif verb == "stop":
        print(f"stopped {control.stop()}")
    elif verb == "sign":
        book.sign(*arguments)
    elif verb == "read":
        for signature in book.signatures():
            print(f"{signature.name}: {signature.words}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
