"""Experiments are scripts beside the package: the repository's root has to be on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
