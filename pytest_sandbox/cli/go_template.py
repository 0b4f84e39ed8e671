"""Docker's templates for ``--format``: the part of Go's text/template that command lines use.

Supported are fields (``{{.State.Running}}``), ``range``, ``if``, ``with``, ``else``, variables,
parentheses, pipelines, and the functions of :data:`FUNCTIONS`. A template is applied to values as
:mod:`json` has them. A field that does not exist is an error, except in a :class:`FreeMap`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Never

from pytest_sandbox.cli.output import json_text
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import TEXT, printable

__all__ = ["FUNCTIONS", "FreeMap", "Template", "TemplateError"]

_ACTION = re.compile(r"(\s*)\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}(\s*)", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<space>\s*)(?:
    (?P<text>"(?:\\.|[^"\\])*"|`[^`]*`)
    |(?P<number>-?\d+(?:\.\d+)?)
    |(?P<field>(?:\.[A-Za-z_]\w*)+)
    |(?P<dot>\.)
    |(?P<variable>\$\w*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>:=|[()|,=])
    )""",
    re.VERBOSE,
)
_CONSTANTS = {"true": True, "false": False, "nil": None}


class TemplateError(SandboxError):
    """A template is invalid, or names a field that does not exist."""


class FreeMap(dict[str, Any]):
    """A map whose keys are data, such as labels: a missing key is ``<no value>``, as in Go."""


class _Scope(NamedTuple):
    """What a name in a template means at one place."""

    dot: Any
    variables: dict[str, Any]


_Node = Callable[[_Scope], Any]


class Template:
    """A parsed template. Raises :class:`TemplateError`."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Docker accepts these two escapes, since most shells cannot write the characters.
        self._pieces = _split(text.replace("\\t", "\t").replace("\\n", "\n"))
        self._at = 0
        self._block, end = self._parse_block()
        if end:
            raise TemplateError(f"{{{{{end}}}}} has no beginning")

    def render(self, value: Any) -> str:
        """Return the text for a value. Raises :class:`TemplateError`."""
        return self._block(_Scope(value, {"$": value}))

    # -- blocks

    def _parse_block(self) -> tuple[Callable[[_Scope], str], str]:
        """Parse up to an ``end`` or ``else``; return the block, and what ended it."""
        nodes: list[_Node] = []
        while self._at < len(self._pieces):
            is_action, text = self._pieces[self._at]
            self._at += 1
            word = text.split(None, 1)[0] if text.split() else ""
            if not is_action:
                nodes.append(_constant(text))
            elif word in {"end", "else"}:
                return _joined(nodes), text
            elif word in {"range", "if", "with"}:
                nodes.append(self._parse_control(word, text[len(word) :]))
            elif not text.startswith("/*"):
                nodes.append(_output(_Expression(text)))
        return _joined(nodes), ""

    def _parse_control(self, word: str, condition: str) -> _Node:
        head = _Expression(condition)
        body, end = self._parse_block()
        other = _constant("")
        if end.startswith("else"):
            more = end[len("else") :].strip()
            if more:
                other = self._parse_control(*_split_word(more))
                return _control(word, head, body, other)
            other, end = self._parse_block()
        if end != "end":
            raise TemplateError(f"{{{{{word}{condition}}}}} has no {{{{end}}}}")
        return _control(word, head, body, other)


def _split_word(text: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    return word, f" {rest}"


def _split(text: str) -> list[tuple[bool, str]]:
    """Split a template into its texts (False) and actions (True)."""
    pieces, at = [], 0
    for match in _ACTION.finditer(text):
        before, trims_left, action, trims_right, after = match.groups()
        pieces.append((False, text[at : match.start()] + ("" if trims_left else before)))
        pieces.append((True, action.strip()))
        at = match.end() if trims_right else match.end() - len(after)
    rest = text[at:]
    if "{{" in rest or "}}" in rest:
        raise TemplateError(f"{rest.strip()!r}: an action is not closed")
    return [piece for piece in [*pieces, (False, rest)] if piece[0] or piece[1]]


def _joined(nodes: list[_Node]) -> Callable[[_Scope], str]:
    return lambda scope: "".join(node(scope) for node in nodes)


def _constant(value: Any) -> _Node:
    return lambda _scope: value


def _output(expression: _Expression) -> _Node:
    def node(scope: _Scope) -> str:
        value = expression(scope)
        return "" if expression.names else printable(shown(value), TEXT)

    return node


def _control(word: str, head: _Expression, body: _Node, other: _Node) -> _Node:
    def node(scope: _Scope) -> str:
        value = head.evaluate(scope)
        if not value:
            return str(other(scope))
        if word == "range":
            return _ranged(head.names, value, body, scope)
        variables = {**scope.variables, **dict.fromkeys(head.names, value)}
        return str(body(_Scope(value if word == "with" else scope.dot, variables)))

    return node


def _ranged(names: list[str], value: Any, body: _Node, scope: _Scope) -> str:
    if isinstance(value, Mapping):
        items = sorted(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        raise TemplateError(f"range needs a list or a map, not {shown(value)}")
    written = []
    for key, one in items:
        named = dict(zip(names, (key, one) if len(names) > 1 else (one,), strict=False))
        written.append(str(body(_Scope(one, {**scope.variables, **named}))))
    return "".join(written)


# -- expressions


class _Token(NamedTuple):
    kind: str
    text: str
    is_spaced: bool


class _Expression:
    """A pipeline, and the names of the variables that get its value."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self._tokens = list(self._tokenized())
        self.names = self._take_names()
        self.evaluate = self._pipeline()
        if self._tokens:
            self._refuse(self._tokens[0].text)

    def __call__(self, scope: _Scope) -> Any:
        value = self.evaluate(scope)
        scope.variables.update(dict.fromkeys(self.names, value))
        return value

    def _refuse(self, found: str) -> Never:
        raise TemplateError(f"{{{{{self._text}}}}}: {found!r} is not expected")

    def _tokenized(self) -> list[_Token]:
        found, at = [], 0
        while self._text[at:].strip():
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                self._refuse(self._text[at:].strip())
            found.append(_Token(match.lastgroup, match[match.lastgroup], bool(match["space"])))
            at = match.end()
        return found

    def _take_names(self) -> list[str]:
        """Take ``$name :=``, or ``$key, $value :=``, from the beginning."""
        texts = [token.text for token in self._tokens[:4]]
        for length in (2, 4):
            if texts[length - 1 : length] in ([":="], ["="]) and texts[0].startswith("$"):
                del self._tokens[:length]
                return texts[: length - 1 : 2]
        return []

    def _pipeline(self) -> _Node:
        node = self._command()
        while self._tokens and self._tokens[0].text == "|":
            self._tokens.pop(0)
            node = self._command(last=node)
        return node

    def _command(self, last: _Node | None = None) -> _Node:
        """Parse a function or a value with its arguments; ``last`` is the value before a ``|``."""
        if self._tokens and self._tokens[0].kind == "word":
            word = self._tokens.pop(0).text
            if word in _CONSTANTS:
                return _constant(_CONSTANTS[word])
            if word not in FUNCTIONS:
                known = ", ".join(sorted(FUNCTIONS))
                raise TemplateError(f"there is no function {word!r}; accepted: {known}")
            return _call(word, [*self._arguments(), *([last] if last else [])])
        first = self._operand()
        arguments = [*self._arguments(), *([last] if last else [])]
        if not arguments:
            return first
        return lambda scope: _method(first(scope), [one(scope) for one in arguments])

    def _arguments(self) -> list[_Node]:
        found = []
        while self._tokens and self._tokens[0].text not in {")", "|"}:
            found.append(self._operand())
        return found

    def _operand(self) -> _Node:
        if not self._tokens:
            raise TemplateError(f"{{{{{self._text}}}}}: a value is missing")
        token = self._tokens.pop(0)
        node = self._plain(token)
        is_chained = token.kind == "variable" or token.text == "("
        while (
            is_chained
            and self._tokens
            and self._tokens[0].kind == "field"
            and not self._tokens[0].is_spaced
        ):
            node = _fields(node, self._tokens.pop(0).text)
        return node

    def _plain(self, token: _Token) -> _Node:
        kind, text, _is_spaced = token
        if kind == "text":
            return _constant(text[1:-1] if text[0] == "`" else ast.literal_eval(text))
        if kind == "number":
            return _constant(float(text) if "." in text else int(text))
        if kind == "dot":
            return lambda scope: scope.dot
        if kind == "field":
            return _fields(lambda scope: scope.dot, text)
        if kind == "variable":
            return lambda scope: _variable(scope, text)
        if kind == "word" and text in _CONSTANTS:
            return _constant(_CONSTANTS[text])
        if text != "(":
            self._refuse(text)
        node = self._pipeline()
        if not self._tokens or self._tokens.pop(0).text != ")":
            raise TemplateError(f"{{{{{self._text}}}}}: a parenthesis is not closed")
        return node


def _variable(scope: _Scope, name: str) -> Any:
    try:
        return scope.variables[name]
    except KeyError:
        raise TemplateError(f"there is no variable {name}") from None


def _fields(node: _Node, chain: str) -> _Node:
    def found(scope: _Scope) -> Any:
        value = node(scope)
        for name in chain[1:].split("."):
            value = field(value, name)
        return value

    return found


def field(value: Any, name: str) -> Any:
    """Return a field of a value. Raises :class:`TemplateError`, which names the known ones."""
    if isinstance(value, Mapping):
        if name in value or isinstance(value, FreeMap):
            return value.get(name)
        raise TemplateError(f"there is no field .{name}{_nearest(name, value)}")
    raise TemplateError(f"there is no field .{name} in {shown(value)}, which has no fields")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    by_case = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_case, n=1)
    meant = f"; did you mean .{by_case[near[0]]}?" if near else ""
    return f"{meant}; accepted: {', '.join(f'.{one}' for one in known)}"


def _call(word: str, arguments: list[_Node]) -> _Node:
    def node(scope: _Scope) -> Any:
        values = [one(scope) for one in arguments]
        try:
            return FUNCTIONS[word](*values)
        except TemplateError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            given = " ".join(map(shown, values))
            raise TemplateError(f"{word} {given}: {error}") from None

    return node


def _method(value: Any, arguments: list[Any]) -> Any:
    """Call what a field holds, such as ``.Label "key"``."""
    if not callable(value):
        raise TemplateError(f"{shown(value)} takes no arguments")
    return value(*arguments)


def shown(value: Any) -> str:
    """Return a value as Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{shown(one)}' for key, one in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple | str) and 0 <= key < len(value):
            value = value[key]
        else:
            raise TemplateError(f"index {shown(key)}: {shown(value)} has no such item")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if any(not 0 <= one <= len(value) for one in bounds):
        raise TemplateError(f"slice {' '.join(map(str, bounds))}: out of range of {shown(value)}")
    start, end = (*bounds, len(value), len(value))[:2]
    return value[start:end]


def _truncate(value: str, length: int) -> str:
    return value[: max(0, length)]


#: The functions of templates: docker's, and those of Go that have a use here.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: json_text(_plain(value), indent=None),
    "join": lambda values, separator: separator.join(map(shown, values)),
    "split": lambda value, separator: value.split(separator),
    "lower": lambda value: value.lower(),
    "upper": lambda value: value.upper(),
    "title": lambda value: value.title(),
    "truncate": _truncate,
    "pad": lambda value, left, right: f"{' ' * left}{value}{' ' * right}" if value else value,
    "print": lambda *values: "".join(map(shown, values)),
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "len": len,
    "index": _index,
    "slice": _slice,
    "eq": lambda value, *others: value in others,
    "ne": lambda value, other: value != other,
    "not": lambda value: not value,
    "and": lambda *values: next((one for one in values if not one), values[-1]),
    "or": lambda *values: next((one for one in values if one), values[-1]),
}


def _plain(value: Any) -> Any:
    """Return a value for JSON, without methods."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if not callable(one)}
    return value
