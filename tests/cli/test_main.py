"""The command line as a whole: verbs, help, error messages, exit statuses and output formats."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import sandbox

from pytest_sandbox import errors
from pytest_sandbox.cli import exit_status, main, output, verbs
from pytest_sandbox.cli.parser import parser_of


@pytest.mark.parametrize("name", verbs.MODULES)
def test_each_verb_can_be_loaded(name):
    """Each verb of the table has its name, a summary of one line, and a parser."""
    verb = verbs.load(name)
    assert (name, 1) == (verb.name, len(verb.summary.splitlines()))
    assert parser_of(verb).format_help().startswith(f"usage: pytest-sandbox {name} ")


def test_the_help_lists_every_verb():
    """--help lists all verbs in the order of the table."""
    done = sandbox("--help")
    listed = [
        line.split()[0]
        for line in done.stdout.partition("verbs:\n")[2].partition("\n\n")[0].splitlines()
    ]
    assert (0, list(verbs.MODULES)) == (done.returncode, listed)


def test_without_arguments_the_help_is_shown(capsys):
    """The command without arguments prints the help and succeeds."""
    assert (0, True) == (main.main([]), "verbs:" in capsys.readouterr().out)


def test_the_error_for_a_misspelt_verb_suggests_a_verb(capsys):
    """The error names the verb that was probably meant."""
    assert (125, True) == (
        main.main(["exce", "box"]),
        "did you mean 'exec'?" in capsys.readouterr().err,
    )


@pytest.mark.parametrize("verb", ["pause", "prun", "rmm", "rim"])
def test_a_verb_that_deletes_is_never_suggested(verb, capsys):
    """The error for an unknown verb never suggests one that deletes something."""
    assert 125 == main.main([verb])
    said = capsys.readouterr().err
    assert f"there is no verb '{verb}'" in said
    assert [] == [other for other in ("'prune'", "'rm'", "'rmi'") if other in said]


def test_the_status_of_an_error_does_not_depend_on_a_reader():
    """The status of an error is 125 also if standard error is a pipe without a reader."""
    for args in ("bogus", "exec no-such-container true"):
        shell = (
            f"{{ {sys.executable} -m pytest_sandbox {args}; echo $? >&3; }} 3>&1 >&2 2>&1 2> "
            ">(exec 0<&-; true)"
        )
        assert (
            "125\n"
            == subprocess.run(
                ["bash", "-c", shell], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        )


def test_the_version_is_the_distributions():
    """--version prints the version of the installed distribution."""
    from importlib.metadata import version

    assert f"pytest-sandbox {version('pytest-sandbox')}\n" == sandbox("--version").stdout


@pytest.mark.parametrize(
    "args",
    [
        ("bogus",),
        ("--bogus",),
        ("run",),
        ("run", "--bogus", "host", "true"),
        ("run", "--mem", "1g", "host"),
    ],
)
def test_a_usage_error_is_125_and_refers_to_the_help(args, capsys):
    """An unknown verb or option has docker's status 125, an error and a reference to the help."""
    status = main.main(args)
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
    """An exception of the library is printed as one line without a traceback."""

    def fail() -> int:
        raise error

    assert (125, said) == (exit_status.guarded(fail), capsys.readouterr().err)


def test_debugging_raises_the_error():
    """When debugging, an exception is raised, so that its traceback is shown."""

    def fail() -> int:
        raise errors.SandboxError("wrong")

    with pytest.raises(errors.SandboxError):
        exit_status.guarded(fail, debugging=True)


def test_a_closed_pipe_is_not_an_error():
    """`pytest-sandbox ... | head` ends with the status of SIGPIPE and without a message."""
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
def test_the_status_of_a_signal_is_128_plus_its_number(returncode, status):
    """The status of a command that was killed by a signal is that of a shell."""
    assert status == exit_status.status_of(returncode)


def test_a_verb_imports_only_its_own_module():
    """Running one verb does not import the others, rich or pytest."""
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


def test_a_plain_table_has_docker_s_format():
    """Columns are three spaces apart, and no line ends with a space."""
    assert "ID     IMAGE\na-1    host\nb-22   x\n" == output.plain_table(
        ("ID", "IMAGE"), [["a-1", "host"], ["b-22", "x"]]
    )
