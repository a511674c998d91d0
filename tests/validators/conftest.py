"""Makes the stub server importable: `from stub import Stub`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
