"""A shim for tools that look for setup.py; pyproject.toml holds the package."""

from setuptools import setup

setup()
