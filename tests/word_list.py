"""Words that this project does not use, because only its first authors would understand them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

__all__ = ["ALLOWED", "NAMES", "WORDS", "Finding", "findings", "findings_in_names"]

#: A word or phrase -> what to write instead. It is searched for in names (``settle_all``,
#: ``SettleAll``), comments, docstrings, strings and pages, also across the end of a line.
WORDS: dict[str, str] = {
    "settle": "configure, apply, or wait until idle",
    "settles": "configures, applies",
    "settled": "configured, applied, idle",
    "settling": "configuring, applying",
    "ground": "rootfs",
    "door": "control socket, or entry point",
    "doors": "control sockets, or entry points",
    "footing": "prerequisites, or confinement",
    "shelf": "layer holder, or snapshot",
    "shelve": "store as a snapshot",
    "shelved": "stored as a snapshot",
    "wire": "report channel",
    "carried": "session state, or copied",
    "sweep": "cleanup",
    "sweeps": "cleans up",
    "swept": "removed",
    "anew": "again",
    "folder": "directory",
    "folders": "directories",
    "rooms": "packages",
    "floors": "layers",
    "lower floor": "lower layer",
    "surroundings": "environment",
    "living": "running, or remote",
    "to be had": "available",
    "can be had": "is available",
    "made ahead": "prewarmed",
    "made ready ahead": "prewarmed",
    "ready ahead": "prewarmed",
    "who is not root": "an unprivileged user",
    "not who is root": "an unprivileged user",
    "as which": "as",
    "what lies below": "what is below, or the lower layers",
    "where there is none": "without one, or if there is none",
    "where there are none": "without any",
    "host's own root": "host's root file system",
    "control group": "cgroup",
    "control groups": "cgroups",
    "the group's directory": "the cgroup's directory",
    "user's number": "UID",
    "number of a user": "UID",
    "number of a process": "PID",
    "process's number": "PID",
    "process numbers": "PIDs",
    "lest": "so that ... not",
    "whence": "from where",
    "thereof": "of it",
}
#: A part of a name of a variable, function, class or file -> what to write instead. These are
#: ordinary words in a sentence.
NAMES: dict[str, str] = {
    "kept": "saved",
    "power": "capability",
    "powers": "capabilities",
    "offer": "prewarmed",
    "ahead": "prewarmed",
}
#: Genuine uses, which are skipped: public names, other software, quoted texts.
ALLOWED: tuple[str, ...] = (
    'NAME = "door"',  # the control socket's file, which other versions use, too
    "pytest_sandbox_carried",  # a hook of the public interface
    "over the wire",
    "on the wire",
)

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: A word, or a punctuation mark, which ends a phrase.
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[.,;:!?]")


@dataclass(frozen=True)
class Finding:
    """A use of a word, or of a phrase, at a line of a text."""

    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.line}: {self.found!r}: write {self.instead}"


def _tokens(text: str) -> list[tuple[str, int]]:
    """Return the lower-case words and the punctuation marks of a text with their lines.

    Names are split at ``_`` and before capitals.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        plain = line
        for allowed in ALLOWED:
            plain = plain.replace(allowed, "")
        found += [(word.lower(), number) for word in _WORD.findall(_HUMP.sub(" ", plain))]
    return found


def findings(text: str) -> list[Finding]:
    """Return the uses of WORDS in a text."""
    tokens = _tokens(text)
    words = [word for word, _line in tokens]
    found = []
    for phrase, instead in WORDS.items():
        first, *rest = phrase.split()
        for at, word in enumerate(words):
            if word == first and words[at + 1 : at + 1 + len(rest)] == rest:
                found.append(Finding(tokens[at][1], phrase, instead))
    return sorted(found, key=lambda one: one.line)


def findings_in_names(text: str) -> list[Finding]:
    """Return the uses of NAMES in the names that a Python file defines."""
    return [
        Finding(line, name, NAMES[word])
        for name, line in _defined(ast.parse(text))
        for word, _line in _tokens(name)
        if word in NAMES
    ]


def _defined(tree: ast.Module) -> list[tuple[str, int]]:
    """Return the names of functions, classes, arguments, variables and attributes, with lines.

    The name of a test is a sentence, so it is none of them.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found += [] if node.name.startswith("test_") else [(node.name, node.lineno)]
        elif isinstance(node, ast.arg):
            found.append((node.arg, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.id, node.lineno))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.attr, node.lineno))
    return found
