"""What other tools measured, in our own record. Their files are read; they themselves are never imported."""

from release.validators.foreign.evalscope import read_evalscope
from release.validators.foreign.evaluation import keep
from release.validators.foreign.inspect_ai import read_inspect
from release.validators.foreign.lm_eval import read_lm_eval

__all__ = ["keep", "read_evalscope", "read_inspect", "read_lm_eval"]
