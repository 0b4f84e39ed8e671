"""The language of the code and of the pages: words of a private vocabulary are not used."""

from __future__ import annotations

import pytest
from source_files import EVERYWHERE, ROOT
from word_list import NAMES, WORDS, findings, findings_in_names

SUFFIXES = {".py", ".md", ".c", ".S", ".sh", ".toml", ".yml", ""}
#: Files that quote the words.
EXEMPT = {"tests/word_list.py", "tests/test_language.py", "CHANGELOG.md"}
#: TEMPORARY: files and directories (with a / at the end) that are being rewritten.
PENDING: tuple[str, ...] = (
    "pytest_sandbox/linux/",
    "pytest_sandbox/host/",
    "pytest_sandbox/image/",
    "pytest_sandbox/plugin/",
    "pytest_sandbox/paths.py",
    "pytest_sandbox/printable.py",
    "pytest_sandbox/cli/attach.py",
    "pytest_sandbox/cli/containers.py",
    "pytest_sandbox/cli/run.py",
    "pytest_sandbox/cli/stats.py",
    "pytest_sandbox/cli/images.py",
    "pytest_sandbox/cli/progress.py",
    "pytest_sandbox/cli/doctor.py",
    "tests/container/test_chroot.py",
    "tests/container/test_remote.py",
    "tests/container/test_storage.py",
    "tests/host/",
    "tests/image/",
    "tests/linux/",
    "tests/plugin/",
    "tests/typing_programs/",
    "tests/cli/test_doctor.py",
    "tests/cli/test_containers.py",
    "tests/cli/test_flags.py",
    "tests/cli/test_run.py",
    "tests/cli/test_terminal.py",
    "tests/cli/test_images.py",
    "tests/test_printable.py",
    "tests/test_structure.py",  # names of files in its temporary lists
    "tests/registries.py",
    "tests/fake_registry.py",
    "tests/tarballs.py",
    "bench/images.py",
    "bench/image_worker.py",
    "tools/make_syscall_numbers.py",
    "tools/make_machine_code.py",
    "tools/machine_code/",
)


def texts() -> dict[str, str]:
    """Return the texts of the repository's files by their paths, without those of PENDING."""
    top = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    below = [
        path
        for directory in (*EVERYWHERE, "docs")
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    found = {str(path.relative_to(ROOT)): path for path in [*top, *below]}
    return {
        name: path.read_text()
        for name, path in sorted(found.items())
        if path.suffix in SUFFIXES and name not in EXEMPT and not name.startswith(PENDING)
    }


def test_the_private_vocabulary_is_not_used():
    """Names, comments, docstrings, strings and pages use the words of man pages and docker."""
    assert [] == [f"{name}:{one}" for name, text in texts().items() for one in findings(text)]


def test_names_are_those_of_the_field():
    """Names in Python files use the words of man pages and docker."""
    assert [] == [
        f"{name}:{one}"
        for name, text in texts().items()
        if name.endswith(".py")
        for one in findings_in_names(text)
    ]


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("def settle(): pass", 1, "settle"),
        ("SETTLE_SECONDS = 1", 1, "settle"),
        ("class LayerShelf: pass", 1, "shelf"),
        ("x = 1\n# The Ground of a container.", 2, "ground"),
        ('"""Start it anew."""', 1, "anew"),
        ('raise OSError("no such folder")', 1, "folder"),
        ("# a container that was made\n# ahead of time", 1, "made ahead"),
        ('"for a user who is "\n"not root"', 1, "who is not root"),
        ("A page.\n\nWhat can be\nhad here.", 3, "can be had"),
    ],
)
def test_a_planted_word_is_found(text, line, found):
    """A word is found in names, comments, docstrings, strings and pages, and across lines."""
    assert [(line, found, WORDS[found])] == [
        (one.line, one.found, one.instead) for one in findings(text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "kept = 1",
        "def start(offer): pass",
        "class PowerTable: pass",
        "self.made_ahead = 1",
        "for kept in range(3): pass",
    ],
)
def test_a_planted_name_is_found(text):
    """A word is found in names of variables, arguments, functions, classes and attributes."""
    (one,) = findings_in_names(text)
    assert one.instead in NAMES.values()


@pytest.mark.parametrize(
    "text",
    [
        "in the background",
        "def pytest_sandbox_carried(item, data): pass",
        "bytes as they are on the wire",
        "room for four bytes",
        "pytest --sandbox-keep=failed",
        "wired, doorway, undergrounds",
        "the limit ``as``, which docker lacks",
    ],
)
def test_genuine_uses_are_allowed(text):
    """Longer words, public names and quoted phrases are not reported."""
    assert [] == findings(text)


def test_ordinary_words_are_allowed_in_sentences():
    """A word that is banned in names only is not reported in a docstring or a string."""
    assert [] == findings_in_names('"""The layer is kept."""\nx = "kept"')


def test_the_finding_says_where_and_what_to_write():
    """A finding has the line, the word and the word to use instead."""
    assert "2: 'folder': write directory" == str(findings("\nfolder")[0])
