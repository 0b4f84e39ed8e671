"""The exceptions that the client raises for the launcher's error messages."""

from __future__ import annotations

import errno

import pytest

from pytest_sandbox import ContainerStopped, SetupError, UnsupportedError, host
from pytest_sandbox.client.errors import raise_for
from pytest_sandbox.host import kernel
from pytest_sandbox.runtime.protocol import ErrorCode
from pytest_sandbox.runtime.step_error import StepError, error_message


@pytest.fixture(autouse=True)
def _nothing_denies(monkeypatch):
    """Have no seccomp policy, profile or other kernel around this process."""
    monkeypatch.setattr(kernel, "denied", lambda _trial: "")


def raised(answer, container=""):
    """Return the exception for an answer."""
    with pytest.raises((ContainerStopped, SetupError, UnsupportedError)) as caught:
        raise_for(answer, container)
    return caught.value


def failed(code, step="mount root", number=errno.EINVAL):
    """Return the message for a step that failed with this code."""
    return error_message(StepError(step, number, "the reason", code=code), "create")


def test_an_answer_that_is_not_an_error_raises_nothing():
    """Other answers pass."""
    assert raise_for({"op": "created", "id": "x"}) is None


def test_a_container_that_has_ended():
    """The code "ended" is a ContainerStopped with the container's id."""
    error = raised({"op": "error", "code": ErrorCode.ENDED}, "the-id")
    assert (ContainerStopped, True) == (type(error), "the-id has ended" in str(error))


def test_what_the_launcher_says_is_unsupported():
    """An UnsupportedError in the launcher is one with the same texts in the client."""
    error = raised(error_message(UnsupportedError("x=1", "Do y."), "create"))
    assert (UnsupportedError, "x=1", "Do y.") == (type(error), error.feature, error.remedy)


@pytest.mark.parametrize(
    ("code", "feature", "remedy"),
    [
        (ErrorCode.ULIMIT_TOO_HIGH, "such a ulimit (the reason)", "ulimit -H"),
        (ErrorCode.DISK_LIMIT_UNAVAILABLE, 'disk= with storage="disk" (the reason)', "e2fsprogs"),
        (ErrorCode.PROC_COVERED, "a container in this container", "unmask=ALL"),
    ],
)
def test_a_code_with_a_remedy_of_its_own(code, feature, remedy):
    """Each is an UnsupportedError that names the feature and what to do."""
    error = raised(failed(code))
    assert (UnsupportedError, feature) == (type(error), error.feature)
    assert remedy in error.remedy


def test_a_user_who_may_create_no_user_namespace(monkeypatch):
    """The client finds the reason for itself, as doctor does."""

    def require(feature, purpose):
        raise UnsupportedError(f"{feature} for {purpose}", "Do z.")

    monkeypatch.setattr(host, "require", require)
    error = raised(failed(ErrorCode.NO_USER_NAMESPACE))
    assert "user namespace for a container without root" == error.feature


def test_a_user_namespace_that_fails_for_an_unknown_reason(monkeypatch):
    """Where the client finds no reason, the error names the step."""
    monkeypatch.setattr(host, "require", lambda *_: None)
    error = raised(failed(ErrorCode.NO_USER_NAMESPACE, "create a user namespace"))
    assert (SetupError, "create a user namespace") == (type(error), error.step)


def test_a_step_that_failed():
    """Any other failed step is a SetupError with its name and reason."""
    error = raised(failed(ErrorCode.STEP_FAILED))
    assert (SetupError, "mount root", "the reason") == (type(error), error.step, error.reason)


def test_a_step_that_something_around_this_process_denies(monkeypatch):
    """It is an UnsupportedError that says what to do about the policy."""
    monkeypatch.setattr(kernel, "denied", lambda trial: f"Allow it: {trial.errno}.")
    error = raised(failed(ErrorCode.STEP_FAILED))
    assert (UnsupportedError, f"Allow it: {errno.EINVAL}.") == (type(error), error.remedy)


@pytest.mark.parametrize(
    ("error", "reason", "number"),
    [
        (OSError(errno.ENOENT, "No such file", "/x"), "No such file: /x", errno.ENOENT),
        (OSError(errno.ENOENT, "No such file"), "No such file", errno.ENOENT),
        (OSError("text"), "text", 0),
        (ValueError("text"), "ValueError: text", 0),
    ],
    ids=str,
)
def test_the_message_of_an_exception_without_a_step(error, reason, number):
    """The request is the step that failed."""
    expected = {
        "op": "error", "code": "step-failed", "step": "renew", "reason": reason, "errno": number,
    }  # fmt: skip
    assert expected == error_message(error, "renew")


def test_every_code_has_an_exception():
    """The client knows what to raise for each code of the protocol."""
    fields = {"step": "x", "reason": "y", "errno": 1, "feature": "f", "remedy": "r"}
    errors = {type(raised({"op": "error", "code": code, **fields})) for code in ErrorCode}
    assert {ContainerStopped, SetupError, UnsupportedError} == errors
