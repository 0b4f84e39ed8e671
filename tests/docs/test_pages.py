"""Checks of the pages that mkdocs does not make, and of the pages that are generated."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from mkdocs_hooks import on_page_markdown

from pytest_sandbox.cli import verbs
from pytest_sandbox.settings.settings import KEYS

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "sample_project/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Each relative link of a page outside of docs/ refers to an existing file and heading."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        found = (ROOT / page).parent / path
        assert found.exists(), target
        assert not heading or heading in headings(found), target


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_reference_describes_every_key():
    """The table of settings has a row for each key, which says whether it is also an option."""
    page = on_page_markdown((ROOT / "docs/reference/settings.md").read_text())
    for key in KEYS.values():
        assert f"| `{key.name}` | {'yes' if key.option else ''} |" in page


def test_the_reference_describes_every_verb():
    """Each verb of the command line has a section with its help."""
    page = on_page_markdown((ROOT / "docs/reference/cli.md").read_text())
    for name in verbs.MODULES:
        assert f"\n## {name}\n" in page
        assert f"\nusage: pytest-sandbox {name} " in page


def test_every_promise_names_a_test_that_exists():
    """Each row of a table of promises in docs/security.md names tests, and they exist."""
    text = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\| promise \| test \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert [] == [row for table in rows for row in table.splitlines() if "`tests/" not in row]
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", text)
    assert len(named) > 40
    for path, name in named:
        assert re.search(
            rf"^ *def {name.split('::')[-1]}\(", (ROOT / path).read_text(), re.MULTILINE
        ), name


def test_the_glossary_is_sorted():
    """The terms of the glossary are in alphabetical order."""
    text = (ROOT / "docs/glossary.md").read_text()
    terms = re.findall(r"^(.+)\n: ", text, re.MULTILINE)
    assert len(terms) > 30
    assert sorted(terms, key=str.casefold) == terms


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md", "docs/security.md"])
def test_files_that_a_page_names_exist(page):
    """A source file that a page names is in the package or below the repository's root."""
    named = re.findall(r"`([\w./]+/[\w.]+\.(?:py|c))`", (ROOT / page).read_text())
    assert named
    for name in named:
        assert (ROOT / "pytest_sandbox" / name).exists() or (ROOT / name).exists(), name


def test_ci_runs_the_readmes_commands():
    """Each of the two commands is in the README once, and CI reads it from there."""
    ci = (ROOT / ".ci/run").read_text()
    for name in ("main-job", "tests"):
        assert 1 == (ROOT / "README.md").read_text().count(
            f"<!-- {name} -->\n```bash\npython3 -m venv"
        )
        assert f"command=$(readme {name})" in ci


def test_ci_is_shell():
    """The CI script has no syntax error."""
    assert 0 == subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=False).returncode
