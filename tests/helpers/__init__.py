"""Helpers shared by tests of several packages; conftest.py puts `tests/` on the path of this process and of those it starts."""
