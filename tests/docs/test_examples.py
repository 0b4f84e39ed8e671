"""Run every example of the README and of docs/ as it is printed.

A Python code block without a title is a script. Blocks with ``title="NAME"`` below one heading are
files in one directory, in which pytest runs. A comment before a block has more information:
``<!-- options: --sandbox -n 2 -->`` for pytest, ``<!-- outcomes: failed=1 -->`` if not all tests
pass, ``<!-- output -->`` if the block is the expected output ("..." matches anything),
``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>.*)$"
    r"|^(?P<heading>#{1,6}) (?P<title>.*)$"
    r"|^ *<!-- (?P<word>options|outcomes|output|not run|needs)(?:: (?P<value>.*?))? -->$"
)
TITLE = re.compile(r'title="([^"]+)"')


@dataclass
class Fence:
    """A code block, with the comments before it."""

    language: str
    title: str | None
    lines: list[str]
    said: dict[str, str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass
class Example:
    """The files below one heading, or one script."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    output: list[list[str]] = field(default_factory=list)

    @property
    def is_script(self) -> bool:
        return not any(name.startswith("test_") for name in self.files)

    def take(self, fence: Fence) -> None:
        if "output" in fence.said:
            self.output.append(fence.lines)
        else:
            self.files[fence.title or "script.py"] = (
                self.files.get(fence.title or "script.py", "") + fence.text
            )
            self.said |= fence.said


def fences(text: str) -> list[tuple[str, Fence]]:
    """Return all code blocks of a page, each with the heading above it."""
    found: list[tuple[str, Fence]] = []
    heading, indent, closing = "", "", ""
    said: dict[str, str] = {}
    fence: Fence | None = None
    for line in text.splitlines():
        if fence is not None:
            if line.strip() == closing:
                fence = None
            else:
                fence.lines.append(line.removeprefix(indent))
            continue
        match = LINE.match(line)
        if match is None:
            said = said if not line.strip() else {}
        elif match["heading"]:
            heading, said = match["title"], {}
        elif match["word"]:
            said[match["word"]] = match["value"] or ""
        else:
            title = TITLE.search(match["info"])
            indent, closing = match["indent"], match["ticks"]
            fence = Fence(match["info"].split(" ")[0], title[1] if title else None, [], said)
            found.append((heading, fence))
            said = {}
    return found


def examples(page: Path) -> list[Example]:
    made: list[Example] = []
    where = page.relative_to(ROOT)
    for heading, fence in fences(page.read_text()):
        name = f"{where}: {heading}"
        is_code = fence.title is not None or fence.language == "python"
        if "not run" in fence.said or not (is_code or "output" in fence.said):
            continue
        together = fence.title is not None or "output" in fence.said
        if not (together and made and made[-1].name == name):
            made.append(Example(name))
        made[-1].take(fence)
    return made


ALL = [example for page in PAGES if page.exists() for example in examples(page)]


def parameter(example: Example) -> object:
    """Return an example with the mark for what ``<!-- needs: PROGRAM... -->`` names."""
    needed = example.said.get("needs", "").split()
    marks = [pytest.mark.needs(*needed)] if needed else []
    return pytest.param(example, marks=marks, id=example.name)


def arguments(example: Example) -> list[str]:
    if example.is_script:
        return [next(iter(example.files))]
    plugins = [
        "-p",
        "no:cacheprovider",
        *(word for name in ("sandbox", "xdist", "pytest_cov") for word in ("-p", name)),
    ]
    return [
        "-m",
        "pytest",
        *plugins,
        "-W",
        "error",
        "-rA",
        *example.said.get("options", "").split(),
    ]


def assert_printed(expected: list[list[str]], printed: str) -> None:
    matcher = pytest.LineMatcher(printed.splitlines())
    for lines in expected:
        matcher.fnmatch_lines(
            [
                line.replace("[", "[[]").replace("...", "*").rstrip() + "*"
                for line in lines
                if line.strip()
            ]
        )


@pytest.mark.needs("root", "limits")
@pytest.mark.parametrize("example", [parameter(example) for example in ALL])
def test_an_example_does_what_it_says(example, pytester, monkeypatch):
    """The tests of an example have the outcomes and the output that its page shows."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, text in example.files.items():
        path = pytester.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if example.is_script:
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=pytester.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (0, "") == (done.returncode, done.stderr)
        assert_printed(example.output, done.stdout)
        return
    result = pytester.run(sys.executable, *arguments(example), timeout=250)
    outcomes = result.parseoutcomes()
    expected = dict(pair.split("=") for pair in example.said.get("outcomes", "").split())
    found = {
        word: count
        for word, count in outcomes.items()
        if word not in {"passed", "warnings", "warning", "deselected"}
    }
    assert {word: int(count) for word, count in expected.items() if word != "passed"} == found
    assert int(expected.get("passed", 1 if not expected else 0)) <= outcomes.get("passed", 0)
    assert_printed(example.output, result.stdout.str())


def test_the_pages_hold_examples():
    """The examples of the pages are found."""
    assert 5 < len(ALL)


PAGE = """
# One
```python
print("a script")
```
## Two
<!-- options: --sandbox -->
```python title="test_a.py"
def test_a(): pass
```
Between.
<!-- outcomes: failed=1 -->
```toml title="pyproject.toml"
[tool]
```
<!-- output -->
```text
1 failed
```
<!-- not run: it is only a shape -->
```python
broken(
```
"""


def test_a_page_is_parsed(tmp_path, monkeypatch):
    """Scripts, files of one directory, comments and outputs are distinguished."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    script, suite = examples(page)
    assert ({"script.py": 'print("a script")\n'}, True) == (script.files, script.is_script)
    assert {"test_a.py": "def test_a(): pass\n", "pyproject.toml": "[tool]\n"} == suite.files
    assert ({"options": "--sandbox", "outcomes": "failed=1"}, [["1 failed"]]) == (
        suite.said,
        suite.output,
    )
