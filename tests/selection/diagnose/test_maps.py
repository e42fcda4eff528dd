"""Maps of trust: planes through the states, and means over cells."""

import numpy as np
import pytest

from offline_mbrl.selection.diagnose import maps
from offline_mbrl.types import UsageError


def test_principal_components_are_those_of_standardized_observations():
    rng = np.random.default_rng(0)
    common = rng.normal(size=2_000)
    other = rng.normal(size=2_000)
    # Two entries share a factor, in very different units; the third is independent.
    observations = np.stack([1_000 * common + 5, 0.01 * common, other], axis=1)
    plane = maps.principal(observations)
    points = plane.project(observations)
    standard = (common - common.mean()) / common.std()
    np.testing.assert_allclose(np.abs(points[:, 0]), np.sqrt(2) * np.abs(standard), atol=0.1)
    assert abs(np.corrcoef(points[:, 1], other)[0, 1]) > 0.99
    assert plane.names[0].startswith("component 1 (67%")


def test_a_bad_corner_is_where_it_is():
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (5_000, 3))
    is_bad = (observations[:, 0] > 0.5) & (observations[:, 2] < -0.5)
    cells = maps.trust_map(
        maps.chosen(3, 0, 2), observations, {"error": is_bad.astype(float)}, num_cells=8
    )
    assert cells.names == ("entry 0", "entry 2")
    errors = cells.values["error"]
    np.testing.assert_allclose(errors[7:, :1], 1.0)
    np.testing.assert_allclose(errors[:5], 0.0)
    np.testing.assert_allclose(errors[:, 3:], 0.0)
    assert 0.97 * 5_000 < cells.count.sum() <= 5_000


def test_cells_without_transitions_are_nan():
    observations = np.array([[0.0, 0.0], [0.0, 0.1], [1.0, 1.0], [1.0, 0.9]] * 50)
    values = np.tile([1.0, 1.0, 3.0, 3.0], 50)
    cells = maps.trust_map(maps.chosen(2, 0, 1), observations, {"error": values}, num_cells=3)
    assert np.isnan(cells.values["error"][1]).all()
    np.testing.assert_allclose(cells.values["error"][0, 0], 1.0)
    np.testing.assert_allclose(cells.values["error"][2, 2], 3.0)


def test_entries_that_never_vary_make_no_trouble():
    observations = np.stack([np.linspace(-1, 1, 50), np.full(50, 3.0)], axis=1)
    cells = maps.trust_map(maps.principal(observations), observations, {"error": np.ones(50)})
    assert cells.count.sum() >= 48


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 3), (-1, 1)])
def test_entries_out_of_range_are_refused(first, second):
    with pytest.raises(UsageError, match=r"two different entries out of 0 \.\. 2"):
        maps.chosen(3, first, second)


def test_a_single_entry_has_no_plane():
    with pytest.raises(UsageError, match="at least two entries"):
        maps.principal(np.ones((5, 1)))
