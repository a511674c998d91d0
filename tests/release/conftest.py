"""The real registry, for tests of the command line."""

from distribution import registry  # noqa: F401
