"""The frame of the command line: verbs are found, errors are one line, statuses are docker's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_sandbox import errors
from pytest_sandbox.cli import exit_status, main, output, verbs
from pytest_sandbox.cli.parser import of_verb


def pytest_sandbox(*words: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pytest_sandbox", *words],
        capture_output=True,
        text=True,
        check=False,
        **keywords,
    )


@pytest.mark.parametrize("name", verbs.MODULES)
def test_each_verb_is_in_its_file(name):
    """The table of verbs leads to a verb of that name, with a summary of one line and a parser that
    can be made.
    """
    verb = verbs.load(name)
    assert (name, 1) == (verb.name, len(verb.summary.splitlines()))
    assert of_verb(verb).format_help().startswith(f"usage: pytest-sandbox {name} ")


def test_the_help_lists_every_verb():
    """Without knowing anything, a user finds all verbs."""
    done = pytest_sandbox("--help")
    listed = [
        line.split()[0]
        for line in done.stdout.partition("verbs:\n")[2].partition("\n\n")[0].splitlines()
    ]
    assert (0, list(verbs.MODULES)) == (done.returncode, listed)


def test_without_a_word_the_help_is_shown(capsys):
    """The bare command is a question, not an error."""
    assert (0, True) == (main.main([]), "verbs:" in capsys.readouterr().out)


def test_a_mistyped_verb_is_guessed(capsys):
    """The verb that was probably meant is named."""
    assert (125, True) == (
        main.main(["exce", "box"]),
        "did you mean 'exec'?" in capsys.readouterr().err,
    )


@pytest.mark.parametrize("word", ["pause", "prun", "rmm", "rim"])
def test_nothing_that_deletes_is_guessed(word, capsys):
    """A word that is no verb is never taken for one that deletes something."""
    assert 125 == main.main([word])
    said = capsys.readouterr().err
    assert f"there is no verb '{word}'" in said
    assert [] == [verb for verb in ("'prune'", "'rm'", "'rmi'") if verb in said]


def test_nobody_who_reads_errors_is_no_error():
    """An error's status stays where standard error is a pipe whose reader has gone."""
    for words in ("bogus", "exec no-such-container true"):
        shell = (
            f"{{ {sys.executable} -m pytest_sandbox {words}; echo $? >&3; }} 3>&1 >&2 2>&1 2> "
            ">(exec 0<&-; true)"
        )
        assert (
            "125\n"
            == subprocess.run(
                ["bash", "-c", shell], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        )


def test_the_version_is_the_distributions():
    """--version tells what pip installed."""
    from importlib.metadata import version

    assert f"pytest-sandbox {version('pytest-sandbox')}\n" == pytest_sandbox("--version").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("bogus",),
        ("--bogus",),
        ("run",),
        ("run", "--bogus", "host", "true"),
        ("run", "--mem", "1g", "host"),
    ],
)
def test_a_wrong_use_is_125_with_a_line_and_a_hint(words, capsys):
    """A wrong verb or option ends as docker's: 125, what is wrong, where the help is."""
    status = main.main(words)
    said = capsys.readouterr().err.splitlines()
    assert (125, 2, True) == (status, len(said), said[1].startswith("See 'pytest-sandbox"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.SandboxError("wrong. Do right."), "pytest-sandbox: wrong. Do right.\n"),
        (
            errors.SettingsError("memory", "5x", "a size"),
            "pytest-sandbox: memory='5x' is not valid; accepted: a size\n",
        ),
        (
            PermissionError(13, "Permission denied", "/run/x"),
            "pytest-sandbox: [Errno 13] Permission denied: '/run/x'\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_125(error, said, capsys):
    """What the library raises reaches the user as one line, without a traceback."""

    def fail() -> int:
        raise error

    assert (125, said) == (exit_status.guarded(fail), capsys.readouterr().err)


def test_an_error_can_be_debugged():
    """With PYTEST_SANDBOX_DEBUG the traceback is shown."""

    def fail() -> int:
        raise errors.SandboxError("wrong")

    with pytest.raises(errors.SandboxError):
        exit_status.guarded(fail, debugging=True)


def test_a_reader_that_left_is_no_error():
    """`pytest-sandbox ... | head` ends with SIGPIPE's status and without a word."""
    code = (
        "import sys; from pytest_sandbox.cli import exit_status; "
        "sys.exit(exit_status.guarded(lambda: print('x' * 100_000)))"
    )
    shell = f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert ("141\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("returncode", "status"), [(0, 0), (7, 7), (-9, 137), (-2, 130), (-15, 143)]
)
def test_a_signal_is_128_and_its_number(returncode, status):
    """A command's end by a signal is told as a shell tells it."""
    assert status == exit_status.status_of(returncode)


def test_one_verb_loads_its_own_file_only():
    """Running one verb leaves the others, rich and pytest unloaded."""
    code = (
        "import sys; from pytest_sandbox.cli.main import main; main(['run', '--help']); "
        "print([n for n in ('rich', 'pytest', 'pytest_sandbox.cli.doctor') if n in sys.modules], "
        "file=sys.stderr)"
    )
    assert (
        "[]\n"
        == subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stderr
    )


def test_a_plain_table_is_dockers():
    """Columns stand three blanks apart, and no line ends with a blank."""
    assert "ID     IMAGE\na-1    host\nb-22   x\n" == output.plain_table(
        ("ID", "IMAGE"), [["a-1", "host"], ["b-22", "x"]]
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (64 << 20, "64MiB"),
        (1536 << 20, "1.5GiB"),
        (1 << 62, "4096PiB"),
    ],
)
def test_sizes_are_printed_as_docker_does(count, text):
    """Bytes are counted by 1024 and carry their unit."""
    assert text == output.size(count)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.3, "0 seconds"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "1 minute"),
        (7300, "2 hours"),
        (90000, "1 day"),
    ],
)
def test_a_duration_has_one_unit(seconds, text):
    """Ages are told in their largest unit."""
    assert text == output.duration(seconds)
