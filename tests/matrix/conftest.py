"""Makes the invented matrix importable: `from folders import write`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
