"""What tests of several packages share; conftest.py puts `tests/` on the path of this process and of those it starts."""
