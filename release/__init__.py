"""A build system for chip × model artifacts."""

__version__ = "0.1.0"
