"""Every test here has a data root and a folder of its own to run in."""

import pytest


@pytest.fixture(autouse=True)
def _in_its_place(place):
    """Uses `command_fixtures.place`."""
