"""Whether a server speaks the OpenAI protocol as its clients expect: one small check, one verdict, one table of them."""

from release.validators.conformance.run import KEY_VARIABLE, PREFIX, conformance, validate
from release.validators.conformance.shutdown import drain
from release.validators.conformance.table import CHECKS, FEATURES, ON_REQUEST, STANDARD

__all__ = ["CHECKS", "FEATURES", "KEY_VARIABLE", "ON_REQUEST", "PREFIX", "STANDARD", "conformance", "drain", "validate"]
