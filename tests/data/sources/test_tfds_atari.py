"""The official Atari builders: checkpoints, percentages, clipped rewards, positions of discounts.

Real data cannot be had here: TFDS's own builder reads a small dataset that is written in its
layout.
"""

import functools

import numpy as np
import pytest

from offline_mbrl.data import steps
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names
from offline_mbrl.data.catalog.atari import Part
from offline_mbrl.data.sources import tfds as ingest_tfds
from offline_mbrl.data.store import read as store
from offline_mbrl.types import DiscreteActions, UsageError

tfds = pytest.importorskip("tensorflow_datasets")
rlds = pytest.importorskip("rlds")

pytestmark = pytest.mark.filterwarnings("ignore")

ORDERED = "rlu_atari_checkpoints_ordered"
NAME = f"{ORDERED}/Pong_run_1"
EPISODES = (30, 21, 4)  # of checkpoints 0, 1 and 2
REWARD = np.array([1, -5, 0.5, 7], np.float32)


def episode(checkpoint, index):
    """Three steps; the frames say whose they are."""
    t = np.arange(4)
    return {
        "checkpoint_id": checkpoint,
        "episode_id": index,
        "episode_return": 0.0,
        "steps": {
            "observation": np.full((4, 84, 84, 1), 50 * checkpoint + index, np.uint8),
            "action": np.full(4, index % 3),
            "reward": REWARD,
            "discount": np.array([1, 1, 0, 0], np.float32),
            "is_first": t == 0,
            "is_last": t == 3,
            "is_terminal": t == 3,
        },
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Where TFDS finds a prepared `Pong_run_1` of three checkpoints."""
    from tensorflow_datasets.rl_unplugged import atari_utils

    root = tmp_path_factory.mktemp("tfds")
    directory = root / NAME / "1.1.0"
    directory.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=ORDERED,
        version=tfds.core.Version("1.1.0"),
        data_dir=str(directory),
        module_name="",
        config_name="Pong_run_1",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=atari_utils.features_dict())
    written = tfds.core.SequentialWriter(info, max_examples_per_shard=8)
    written.initialize_splits([f"checkpoint_{index:02d}" for index in range(len(EPISODES))])
    for checkpoint, number in enumerate(EPISODES):
        listed = [episode(checkpoint, index) for index in range(number)]
        written.add_examples({f"checkpoint_{checkpoint:02d}": listed})
    written.close_all()
    return root


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch, prepared):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(tfds, "builder", functools.partial(tfds.builder, data_dir=str(prepared)))


def episodes_read(name):
    """What the frames of a dataset's episodes say, both splits together, in order."""
    opened = catalog.open_named(name)
    parts = [store.aligned(opened, split) for split in store.SPLITS]
    return sorted(
        int(part.columns["observation"][end, 0, 0, 0])
        for part in parts
        if part
        for end in part.episode_ends
    )


def expected(*counts):
    return [50 * checkpoint + index for checkpoint, count in counts for index in range(count)]


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("", [(0, 30), (1, 21), (2, 4)]),
        # The first of every checkpoint; of four episodes a tenth is none
        ("-percent10", [(0, 3), (1, 2)]),
        ("-checkpoints1", [(1, 21)]),
        ("-checkpoints1-2", [(1, 21), (2, 4)]),
        ("-percent50-checkpoints1-2", [(1, 10), (2, 2)]),
    ],
)
def test_the_name_chooses_checkpoints_and_the_first_episodes_of_each(variant, counts):
    assert episodes_read(NAME + variant) == expected(*counts)


def test_it_loads_as_single_frames_with_all_that_training_needs():
    loaded = catalog.load(f"{NAME}-percent10")
    assert loaded.dataset.observation.shape[1:] == (84, 84, 1)
    assert loaded.dataset.observation.dtype == np.uint8
    assert (loaded.spec.observation.shape, loaded.spec.observation.dtype) == ((84, 84, 4), np.uint8)
    assert (loaded.spec.frame_stack, loaded.spec.horizon) == (4, 27_000)
    assert loaded.spec.action == DiscreteActions(6)  # though the data hold three of them
    assert (loaded.simulator, loaded.reference) == ("atari/Pong", (-20.3, 18.2))


def test_rewards_are_clipped_unless_the_name_says_otherwise():
    for variant, reward in (("", [1, -1, 0.5]), ("-unclipped", [1, -5, 0.5])):
        columns = store.aligned(
            catalog.open_named(f"{NAME}-checkpoints2{variant}"), "train"
        ).columns
        np.testing.assert_array_equal(columns["reward"].reshape(-1, 4)[:, :3], [reward] * 3)
        np.testing.assert_array_equal(columns["discount"].reshape(-1, 4)[:, :3], [[1, 1, 0]] * 3)


def test_a_directory_of_the_official_layout_is_known_by_itself(prepared):
    loaded = catalog.load(str(prepared / NAME))
    assert (loaded.spec.frame_stack, loaded.spec.action, loaded.simulator) == (
        4,
        DiscreteActions(6),
        "atari/Pong",
    )
    assert loaded.dataset.reward.max() == 1


def test_a_checkpoint_that_was_not_prepared_is_one_line():
    with pytest.raises(
        UsageError, match=r"has no split 'checkpoint_03'; it has checkpoint_00, checkpoint_01"
    ):
        catalog.load(f"{NAME}-checkpoints2-3")


def test_a_single_split_gives_its_first_episodes():
    with tfds.testing.mock_data(num_examples=3, num_sub_examples=40):
        complete = catalog.open_named("rlu_atari/Breakout_run_2")
    assert complete.manifest["spec"]["frame_stack"] == 4
    assert complete.manifest["spec"]["action"] == {"num_actions": 4}
    assert complete.manifest["provenance"]["splits"] == ["train"]
    with tfds.testing.mock_data(num_examples=3, num_sub_examples=40):
        part = catalog.open_named("rlu_atari/Breakout_run_2-percent40")
    assert part.manifest["provenance"]["splits"] == ["train[:40%]"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_builders_discounts_stand_where_ours_do(terminal):
    """TFDS shifts the stored discounts of a terminated episode by one step, as the flags do."""
    import tensorflow as tf
    from tensorflow_datasets.rl_unplugged import atari_utils

    discounts = [1.0, 1.0, 1.0, 0.0 if terminal else 1.0]

    def floats(values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def integers(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "checkpoint_idx": integers([0]),
                "episode_idx": integers([0]),
                "episode_return": floats([0.0]),
                "clipped_episode_return": floats([0.0]),
                "actions": integers([0, 1, 2, 3]),
                "discounts": floats(discounts),
                "observations": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[b"0", b"1", b"2", b"3"])
                ),
                "unclipped_rewards": floats([0, 1, 2, 3]),
                "clipped_rewards": floats([0, 1, 1, 1]),
            }
        )
    )
    theirs = {
        name: value.numpy()
        for name, value in atari_utils.atari_example_to_rlds(
            tf.constant(example.SerializeToString())
        )["steps"].items()
    }
    ours = steps.align(theirs).columns
    np.testing.assert_array_equal(ours["discount"][:3], theirs["discount"][:3])
    assert ours["discount"][2] == (0 if terminal else 1)


# --- names ---


@pytest.mark.parametrize(
    ("name", "canonical", "part"),
    [
        (NAME, NAME, Part()),
        (f"{NAME}-percent100", NAME, Part()),
        (
            f"{NAME}-unclipped-percent10-checkpoints0-4",
            f"{NAME}-checkpoints0-4-percent10-unclipped",
            Part(checkpoints=(0, 4), percent=10, clipped=False),
        ),
        (f"{NAME}-checkpoints49", f"{NAME}-checkpoints49-49", Part((49, 49))),
        ("rlu_atari/Pong_run_5-percent1", "rlu_atari/Pong_run_5-percent1", Part(percent=1)),
    ],
)
def test_parts_are_written_into_the_name(name, canonical, part):
    entry = names.lookup(name)
    assert (entry.name, entry.part) == (canonical, part)
    assert entry.location == name.partition("-")[0]
    assert names.lookup(canonical) == entry


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{NAME}-percent0", "percent must be from 1 to 100, got 0"),
        (f"{NAME}-checkpoints50", "a first and a last of 0 to 49, got 50-50"),
        (f"{NAME}-checkpoints4-2", "a first and a last of 0 to 49, got 4-2"),
        (f"{ORDERED}/Carnival_run_1-checkpoints0-49", "of 0 to 48"),
        ("rlu_atari/Pong_run_1-checkpoints0", f"is not divided into checkpoints, {ORDERED} is"),
        (f"{NAME}-percent", f"did you mean {NAME}"),
        (f"{ORDERED}/Pnog_run_1-percent10", "did you mean"),
        (f"{NAME}-fraction10", "did you mean"),
    ],
)
def test_parts_that_are_not_there_are_one_line(name, message):
    with pytest.raises(UsageError, match=message) as refused:
        names.lookup(name)
    assert "\n" not in str(refused.value)


def test_the_smallest_part_is_refused_when_it_holds_nothing():
    with pytest.raises(UsageError, match="holds no transition"):
        catalog.load(f"{NAME}-checkpoints2-percent1")
    assert ingest_tfds.atari.splits(["a", "b"], Part(percent=3)) == ["a[:3%]", "b[:3%]"]
