"""From words to a verb and its arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox import supported
from pytest_sandbox.cli import verbs
from pytest_sandbox.cli.exit_status import OUR_ERROR, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.cli.verb import Verb

__all__ = ["Parser", "dispatch", "of_verb"]

PROGRAM = "pytest-sandbox"
#: Verbs that delete something: what was typed otherwise is never taken for one of them.
_DESTRUCTIVE = {"rm", "rmi", "prune"}
_DESCRIPTION = "Run commands in throwaway containers, and look at those of tests."


class Parser(argparse.ArgumentParser):
    """argparse's parser with docker's status for a wrong use, and no guessing of shortened
    options.
    """

    def __init__(self, **keywords: object) -> None:
        super().__init__(
            allow_abbrev=False,
            conflict_handler="resolve",  # docker's -h is the host name
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **keywords,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and where the help is; exits with 125."""
        say(f"{PROGRAM}: {message}\nSee '{self.prog} --help'.")
        raise SystemExit(OUR_ERROR)


def of_verb(verb: Verb) -> Parser:
    """Return the parser of one verb's arguments."""
    prog = f"{PROGRAM} {verb.name}"
    parser = Parser(
        prog=prog, usage=f"{prog} {verb.usage}", description=verb.summary, epilog=verb.details
    )
    verb.arguments(parser)
    return parser


def dispatch(words: Sequence[str]) -> int:
    """Find the verb in ``words``, read its arguments, and do it."""
    if words and words[0] in verbs.MODULES:
        verb = verbs.load(words[0])
        found = of_verb(verb).parse_args(words[1:])
        supported.require()
        return verb.run(found)
    whole = _whole()
    if words:
        _options, rest = whole.parse_known_args(words)
        whole.error(_unknown((rest or words)[0]))
    whole.print_help()
    return 0


def _unknown(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(
        word, [name for name in verbs.MODULES if name not in _DESTRUCTIVE], n=1
    )
    return f"there is no verb {word!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _whole() -> Parser:
    """Return the parser of what comes before a verb."""
    summaries = "\n".join(f"  {name:<10} {verbs.load(name).summary}" for name in verbs.MODULES)
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB [ARGUMENTS]",
        description=_DESCRIPTION,
        epilog=f"verbs:\n{summaries}\n\n'{PROGRAM} VERB --help' tells more. 'IMAGE' may be "
        "'host': the root of this host, as copy-on-write.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
    return parser


class _Version(argparse.Action):
    """The version, looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_rest: object) -> NoReturn:
        from importlib.metadata import version

        print(PROGRAM, version(PROGRAM))
        parser.exit()
