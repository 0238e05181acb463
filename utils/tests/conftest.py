"""Fixtures of the unit tests."""

from utils.tests import settings  # noqa: F401
