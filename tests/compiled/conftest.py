"""Settings of tests that load libtpu in their own process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_flags_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove XLA_FLAGS, which tests/conftest.py sets: libtpu ends the process at flags that it does not have."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
