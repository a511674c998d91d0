"""The operators by name: the one place that loads torch, triton and every kernel."""

from __future__ import annotations

from typing import Final

from ..operator import Operator
from . import rms_norm

OPERATORS: Final[dict[str, Operator]] = {module.OPERATOR.name: module.OPERATOR for module in (rms_norm,)}
