"""Tests in rootless containers. These run in a virtual machine of tools/vm, as a user."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.needs("user", "containers"), pytest.mark.vm]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "os.rename(os.getcwd() + '/there', os.getcwd() + '/elsewhere')",
            "a directory of the host cannot be renamed",
        ),
        (
            "raise OSError(errno.EOVERFLOW, 'Value too large')",
            "is not mapped into the user namespace",
        ),
    ],
)
def test_errors_of_rootless_containers_have_hints(run, reports, pytester, body, said):
    """Renaming a directory of the host, and changing a file of an unmapped owner, have hints."""
    pytester.mkdir("there")
    run(f"import errno, os\ndef test(): {body}")
    (report,) = [one for one in reports() if one["outcome"] == "failed"]
    assert said in dict(report["sections"])["hint"]
