"""From the arguments of the command line to a verb and its arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox import supported
from pytest_sandbox.cli import verbs
from pytest_sandbox.cli.exit_status import OUR_ERROR, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.cli.verb import Verb

__all__ = ["PROGRAM", "Parser", "dispatch", "parser_of"]

PROGRAM = "pytest-sandbox"
#: Verbs that delete something, which are never suggested for a misspelt verb.
_DESTRUCTIVE = {"rm", "rmi", "prune"}
#: How argparse begins the message for unknown options.
_UNKNOWN_FLAG = "unrecognized arguments: "
_DESCRIPTION = "Run commands in throwaway containers, and inspect the containers of tests."


class Parser(argparse.ArgumentParser):
    """A parser with docker's exit status for errors, and without abbreviations of options."""

    def __init__(self, **keywords: object) -> None:
        super().__init__(
            allow_abbrev=False,
            conflict_handler="resolve",  # docker's -h is --hostname
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **keywords,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Print the error and where to find help, and exit with status 125."""
        unknown = message.removeprefix(_UNKNOWN_FLAG).split()
        if message.startswith(_UNKNOWN_FLAG) and unknown[0].startswith("-"):
            message = self._unknown_flag(unknown[0])
        say(f"{PROGRAM}: {message}\nSee '{self.prog} --help'.")
        raise SystemExit(OUR_ERROR)

    def _unknown_flag(self, text: str) -> str:
        """Return docker's message for an unknown flag, with the one that was probably meant."""
        from difflib import get_close_matches

        flag = text.partition("=")[0]
        if not flag.startswith("--"):
            return f"unknown shorthand flag: {flag[1:2]!r} in {flag}"
        known = [name for name in self._option_string_actions if name.startswith("--")]
        near = get_close_matches(flag, known, n=1)
        return f"unknown flag: {flag}" + (f"; did you mean {near[0]}?" if near else "")


def parser_of(verb: Verb) -> Parser:
    """Return the parser of one verb's arguments."""
    prog = f"{PROGRAM} {verb.name}"
    parser = Parser(
        prog=prog, usage=f"{prog} {verb.usage}", description=verb.summary, epilog=verb.details
    )
    verb.arguments(parser)
    return parser


def dispatch(args: Sequence[str]) -> int:
    """Run the verb that ``args`` name, and return its exit status."""
    if args and args[0] in verbs.MODULES:
        verb = verbs.load(args[0])
        found = parser_of(verb).parse_args(args[1:])
        supported.require()
        return verb.run(found)
    parser = _top_parser()
    if args:
        _options, rest = parser.parse_known_args(args)
        parser.error(_unknown((rest or args)[0]))
    parser.print_help()
    return 0


def _unknown(verb: str) -> str:
    """Return the error message for an unknown verb."""
    from difflib import get_close_matches

    near = get_close_matches(
        verb, [name for name in verbs.MODULES if name not in _DESTRUCTIVE], n=1
    )
    return f"there is no verb {verb!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _top_parser() -> Parser:
    """Return the parser of a command line without a verb."""
    summaries = "\n".join(f"  {name:<10} {verbs.load(name).summary}" for name in verbs.MODULES)
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB [ARGUMENTS]",
        description=_DESCRIPTION,
        epilog=f"verbs:\n{summaries}\n\n'{PROGRAM} VERB --help' shows more. IMAGE can be 'host': "
        "the root file system of this host, as copy-on-write.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
    return parser


class _Version(argparse.Action):
    """Print the version, which is looked up only then, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_rest: object) -> NoReturn:
        from importlib.metadata import version

        print(PROGRAM, version(PROGRAM))
        parser.exit()
