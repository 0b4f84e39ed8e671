"""An image store for the prepared files of these tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a store that all tests of this process share."""
    with pytest.MonkeyPatch.context() as patch:
        directory = str(tmp_path_factory.mktemp("home"))
        patch.setenv("PYTEST_SANDBOX_HOME", directory)
        yield directory
