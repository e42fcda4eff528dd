"""Datasets of single frames: a record holds one, the spec says what the policy sees."""

import jax
import numpy as np
import pytest
from data_examples import episode

from offline_mbrl.data import audit, specs
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.sources import rlds_writer
from offline_mbrl.data.store import read as store
from offline_mbrl.types import DiscreteActions, EnvironmentSpec

FRAME = jax.ShapeDtypeStruct((4, 4, 1), np.uint8)
SEEN = jax.ShapeDtypeStruct((4, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))


def frames(index):
    records = episode(length=5, terminal=True, seed=index)
    rng = np.random.default_rng(index)
    return {"steps": records | {"observation": rng.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)}}


def test_a_spec_with_stacked_frames_survives_json():
    spec = EnvironmentSpec(
        observation=SEEN,
        action=DiscreteActions(6),
        gamma=0.99,
        horizon=27_000,
        frame_stack=3,
    )
    assert specs.from_json(specs.to_json(spec)) == spec


def test_a_spec_without_stacked_frames_is_written_as_before_and_read_as_one():
    json = specs.to_json(EnvironmentSpec(SEEN, DiscreteActions(6)))
    # So that fingerprints do not change
    assert set(json) == {"observation", "action", "gamma", "horizon"}
    assert specs.from_json(json).frame_stack == 1


def test_a_record_is_what_the_policy_sees_less_the_stacking():
    spec = EnvironmentSpec(specs.stacked({"frame": FRAME}, 3), DiscreteActions(6), frame_stack=3)
    assert spec.observation == {"frame": SEEN}
    assert specs.record_structure(spec) == {"frame": FRAME}
    plain = EnvironmentSpec(FRAME, DiscreteActions(6))
    assert specs.record_structure(plain) == FRAME


def test_single_frames_load_as_they_are_stored_beside_a_spec_of_stacks(tmp_path):
    rlds_writer.write_rlds(
        tmp_path / "mine",
        iter(map(frames, range(4))),
        action=DiscreteActions(3),
        metadata={},
        frame_stack=3,
    )
    loaded = catalog.load(str(tmp_path / "mine"))
    assert loaded.dataset.observation.shape == (18, 4, 4, 1)
    assert loaded.dataset.observation.dtype == np.uint8
    assert (loaded.spec.observation, loaded.spec.frame_stack) == (SEEN, 3)
    opened = catalog.open_named(str(tmp_path / "mine"))
    assert audit.shapes(store.aligned(opened, "train"), loaded.spec) == []


def test_frames_of_ones_own_have_the_spec_of_their_stacks(tmp_path):
    rlds_writer.write_rlds(
        tmp_path / "mine", iter(map(frames, range(4))), action=DiscreteActions(3), metadata={}
    )
    loaded = catalog.load(str(tmp_path / "mine"))
    assert (loaded.spec.observation, loaded.spec.frame_stack) == (FRAME, 1)
    spec = catalog.spec_of(loaded.dataset, num_actions=3, frame_stack=3)
    assert (spec.observation, spec.frame_stack) == (SEEN, 3)
