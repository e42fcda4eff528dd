"""The mark of tests that play the control suite."""

import importlib.util
import sys

import pytest

needs_control_suite = pytest.mark.skipif(
    sys.version_info >= (3, 13) and importlib.util.find_spec("dm_control") is None,
    reason="dm_control needs labmaze, which has no wheel for Python 3.13",
)
