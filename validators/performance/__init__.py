"""How fast does it answer? A tool made for it puts the load on, every repeat is kept, and a gate compares only what can be compared."""

from release.validators.performance.foreign import read_aisbench, read_evalscope_perf
from release.validators.performance.gate import NAME, gate
from release.validators.performance.vllm_bench import argv, read_run

__all__ = ["NAME", "argv", "gate", "read_aisbench", "read_evalscope_perf", "read_run"]
