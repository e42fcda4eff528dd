"""TFDS with TensorFlow: TFRecord, the official builders' layouts, and other libraries as readers.

TensorFlow takes seconds to import, so everything that needs it is here.
"""

import jax
import numpy as np
import pytest
from data_examples import episode, episodes, source, written

from offline_mbrl.data.catalog import d4rl
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.sources import ingest, rlds_writer
from offline_mbrl.data.sources import tfds as ingest_tfds
from offline_mbrl.data.store import read as store
from offline_mbrl.types import DiscreteActions, UsageError

tfds = pytest.importorskip("tensorflow_datasets")
rlds = pytest.importorskip("rlds")
episode_writer = pytest.importorskip("rlds.tfds.episode_writer")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))


def stored(source, target):
    ingest.ingest(source, target, name="test")
    return store.open_store(target)


# --- what we write, read by others ---


def as_tf_dataset(steps):
    """TFDS gives array_record's steps one by one: stacked, they are a `tf.data.Dataset` again."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(
        jax.tree.map(lambda *column: np.stack(column), *steps)
    )


def test_what_we_write_opens_with_tfds_and_works_with_rlds(tmp_path):
    listed = episodes(6)
    rlds_writer.write_rlds(
        tmp_path / "rlds", written(listed), action=DiscreteActions(3), metadata={}
    )
    builder = tfds.builder_from_directory(str(tmp_path / "rlds"))
    assert builder.info.splits["train"].num_examples == 6
    for index, (records, read) in enumerate(
        zip(listed, builder.as_data_source(split="train"), strict=True)
    ):
        total = records["reward"].sum()
        assert read["episode_id"] == index
        assert np.isclose(read["episode_return"], total, rtol=1e-5, atol=1e-6)
        steps = as_tf_dataset(read["steps"])
        assert rlds.transformations.episode_length(steps) == len(records["reward"])
        summed = rlds.transformations.sum_dataset(steps, lambda step: step["reward"])
        assert np.isclose(summed, total, rtol=1e-5, atol=1e-6)
        pairs = list(
            tfds.as_numpy(rlds.transformations.batch(steps, size=2, shift=1, drop_remainder=True))
        )
        np.testing.assert_array_equal(
            [pair["observation"][1] for pair in pairs], records["observation"][1:]
        )
        np.testing.assert_array_equal([pair["reward"][0] for pair in pairs], records["reward"][:-1])
        np.testing.assert_array_equal(
            [pair["is_terminal"][1] for pair in pairs], records["is_terminal"][1:]
        )


# --- TFRecord ---


def write_tfds(directory, name, features, examples):
    """A TFRecord dataset as TFDS itself writes it."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version("1.0.0"),
        data_dir=str(directory / name),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    (directory / name).mkdir()
    opened = tfds.core.SequentialWriter(info, max_examples_per_shard=1000)
    opened.initialize_splits(["train"])
    opened.add_examples({"train": examples})
    opened.close_all()
    return directory / name


def write_array_record(directory, name, features, examples):
    """The same as array_record."""
    (directory / name).mkdir()
    records = (features.serialize_example(example) for example in examples)
    rlds_writer._describe(
        directory / name, features, *rlds_writer._write_shards(directory / name, name, records)
    )
    return directory / name


def write_tfrecord(directory, listed):
    """Episodes of `data_examples` through rlds's own writer."""
    shapes = {
        name: tfds.features.Tensor(shape=value.shape[1:], dtype=value.dtype)
        for name, value in listed[0].items()
    }
    config = tfds.rlds.rlds_base.DatasetConfig(
        name="recorded",
        observation_info=shapes["observation"],
        action_info=np.int32,
        reward_info=np.float32,
        discount_info=np.float32,
    )
    (directory / "recorded").mkdir(parents=True)
    opened = episode_writer.EpisodeWriter(str(directory / "recorded"), config)
    for records in listed:
        rows = [
            {name: value[t] for name, value in records.items()}
            for t in range(len(records["reward"]))
        ]
        opened.add_episode(rlds.build_episode(steps=rows, metadata={}))
    opened.close()
    return directory / "recorded"


def test_tfrecord_and_the_episodes_themselves_give_the_same_store(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_tfds, "WINDOW", 5)  # longer episodes are read in pieces
    listed = episodes(30)
    read = stored(
        ingest_tfds.directory_source(write_tfrecord(tmp_path, listed)), tmp_path / "store"
    )
    direct = stored(source(listed), tmp_path / "direct")
    assert read.manifest["fingerprint"] == direct.manifest["fingerprint"]
    assert read.manifest["counts"] == direct.manifest["counts"]


def test_twenty_truncations_of_tfrecord_are_all_found(tmp_path):
    directory = write_tfrecord(
        tmp_path, [episode(length=6, terminal=True, start=100.0 * i) for i in range(12)]
    )
    file = next(directory.glob("*.tfrecord*"))
    content = file.read_bytes()
    record = len(content) // 12
    rng = np.random.default_rng(0)
    on_a_boundary = [record * k for k in range(12)]
    inside = rng.integers(0, len(content), 8).tolist()
    assert len(content) == 12 * record  # so that cuts on a boundary leave a sound file
    for length in on_a_boundary + inside:
        file.write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"incomplete|cannot be read to its end"):
            stored(ingest_tfds.directory_source(directory), tmp_path / "store")
    assert not (tmp_path / "store").exists()


# --- the official builders ---


@pytest.mark.parametrize(
    ("name", "observation", "action"),
    [
        ("rlu_control_suite/cartpole_swingup", {"position": (3,), "velocity": (2,)}, (1,)),
        ("rlu_atari/Pong_run_1", (84, 84, 1), ()),
        ("rlu_atari_checkpoints_ordered/Pong_run_1", (84, 84, 1), ()),
        ("d4rl_mujoco_hopper/v2-medium", (11,), (3,)),
        ("d4rl_antmaze/umaze-v0", (29,), (8,)),
        ("d4rl_adroit_pen/v1-human", (45,), (24,)),
    ],
)
def test_official_datasets_go_through_ingest(name, observation, action):
    with tfds.testing.mock_data(num_examples=7, num_sub_examples=40):
        opened = catalog.open_named(name)
    part = store.aligned(opened, "train")
    shapes = part.columns["observation"]
    shapes = (
        {k: v.shape[1:] for k, v in shapes.items()}
        if isinstance(shapes, dict)
        else shapes.shape[1:]
    )
    assert shapes == observation
    assert part.columns["action"].shape[1:] == action
    assert part.columns["action"].dtype == (np.float32 if action else np.int32)
    counts = opened.manifest["counts"]
    dropped = sum(counts["dropped"].values())
    assert counts["source_episodes"] == 7
    # The mock's flags are random: they decide
    assert counts["steps"] == 7 * 40 == counts["records"] + dropped
    assert counts["transitions"] == counts["records"] - counts["episodes"]
    # Of each episode that no terminal ends
    wrong_ends = counts["dropped"].get(ingest_tfds.WRONG_ENDS, 0)
    assert (1 <= wrong_ends <= 7) if name.startswith("d4rl_mujoco") else wrong_ends == 0
    assert ("semantics" in opened.manifest["provenance"]) == name.startswith("d4rl")
    assert opened.manifest["provenance"]["builder"] == name
    assert opened.manifest["provenance"]["builder_version"].count(".") == 2


def test_the_d4rl_builders_wrong_last_observation_is_never_part_of_a_transition(tmp_path):
    # The toy file of two episodes 0 1 2 | 3 4 5, the first of which a terminal ends: the builder
    # closes both with an observation of the file's end.
    shown = [[0, 1, 2, 6], [3, 4, 5, 6]]
    listed = [
        episode(length=3, terminal=index == 0) | {"observation": np.float32(shown[index])[:, None]}
        for index in range(2)
    ]
    assert ingest_tfds.has_wrong_ends("d4rl_mujoco_hopper/v2-medium")
    assert not ingest_tfds.has_wrong_ends("d4rl_mujoco_hopper/v0-medium")
    assert not ingest_tfds.has_wrong_ends("d4rl_antmaze/umaze-v2")
    read = [ingest.Batch(records, np.array([4])) for records in listed]
    repaired = [ingest_tfds._with_honest_end(batch, wrong=True) for batch in read]
    opened = stored(ingest.Source(ingest.grouped(repaired), {}), tmp_path / "store")
    for split, observation, discount in (
        ("train", [0, 1, 2, 2], [1, 1, 0, 1]),  # the terminal stays one
        ("validation", [3, 4, 5], [1, 1, 1]),  # cut there: nothing is known of the outcome
    ):
        part = store.aligned(opened, split)
        np.testing.assert_array_equal(part.columns["observation"][:, 0], observation)
        np.testing.assert_array_equal(part.columns["discount"], discount)
    assert opened.manifest["counts"]["dropped"] == {ingest_tfds.WRONG_ENDS: 1}


def test_the_d4rl_builders_zeros_after_a_terminal_become_a_copy_of_the_state_before():
    records = episode(length=3, terminal=True)
    observation = records["observation"] * (np.arange(4) < 3)[:, None]
    repaired = ingest_tfds._with_honest_end(
        ingest.Batch(records | {"observation": observation}, np.array([4])), wrong=False
    )
    np.testing.assert_array_equal(repaired.records["observation"], observation[[0, 1, 2, 2]])


def test_only_records_that_the_d4rl_builders_append_are_dropped():
    cut = episode(length=3, terminal=False)
    step = ingest.Batch(cut | {"action": np.ones((4, 2))}, np.array([4]))
    assert ingest_tfds._with_honest_end(step, wrong=False) is step
    closed = np.repeat([[1.0], [1.0], [1.0], [0.0]], 2, axis=1)  # by a zero action
    appended = ingest.Batch(cut | {"action": closed}, np.array([4]))
    repaired = ingest_tfds._with_honest_end(appended, wrong=False)
    assert (len(repaired.records["reward"]), repaired.lengths.tolist()) == (3, [3])


def test_names_and_files_are_those_of_the_d4rl_builders():
    names = {}
    for builder in dict.fromkeys(name.split("/")[0] for name in d4rl.BY_TFDS):
        configs = tfds.builder_cls(builder).builder_configs
        names |= {f"{builder}/{name}": config.file_suffix for name, config in configs.items()}
    assert names.keys() == d4rl.BY_TFDS.keys()
    for name, file in names.items():
        official = d4rl.BY_TFDS[name]
        if official.file != "walker_mixed":  # the builder has a special case for it
            assert official.file.endswith(file)


def test_an_official_dataset_that_cannot_be_prepared_is_one_line(monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        UsageError, match=r"cannot prepare .* no route to host; prepare it where"
    ) as refused:
        catalog.load("d4rl_mujoco_hopper/v2-medium")
    assert "\n" not in str(refused.value)


def test_a_dataset_without_steps_is_refused(tmp_path):
    features = tfds.features.FeaturesDict({"number": np.int64})
    directory = write_tfds(tmp_path, "plain", features, [{"number": 1}])
    with pytest.raises(UsageError, match="no RLDS dataset: its examples have no `steps`"):
        ingest_tfds.directory_source(directory)


def test_frames_and_compressed_observations_are_decoded(tmp_path):
    image = tfds.features.Image(shape=(4, 4, 1), dtype=np.uint8)
    packed = tfds.features.Tensor(shape=(3,), dtype=np.float32, encoding="zlib")
    steps = {
        "observation": {"frame": image, "state": packed},
        "action": np.int64,
        "reward": np.float32,
        "is_first": np.bool_,
        "is_last": np.bool_,
        "is_terminal": np.bool_,
    }
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)
    states = rng.normal(size=(5, 3)).astype(np.float32)
    last = np.arange(5) == 4
    example = {
        "steps": {
            "observation": {"frame": frames, "state": states},
            "action": np.arange(5),
            "reward": np.ones(5, np.float32),
            "is_first": np.arange(5) == 0,
            "is_last": last,
            "is_terminal": last,
        }
    }
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    for write in (write_array_record, write_tfds):
        directory = write(tmp_path, write.__name__, features, [example])
        opened = stored(
            ingest_tfds.directory_source(directory), tmp_path / f"{write.__name__}_store"
        )
        columns = store.aligned(opened, "train").columns
        np.testing.assert_array_equal(columns["observation"]["frame"], frames)
        np.testing.assert_array_equal(columns["observation"]["state"], states)
