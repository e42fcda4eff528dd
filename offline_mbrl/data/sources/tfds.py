"""RLDS datasets through TFDS, as sources: array_record without TensorFlow, TFRecord with it."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from offline_mbrl.data import specs, steps, trees
from offline_mbrl.data.catalog import atari, d4rl
from offline_mbrl.data.sources import ingest, rlds_writer
from offline_mbrl.types import DiscreteActions, UsageError

CONTROL_SUITE = "rlu_control_suite"
FIELDS = ("observation", "action", "reward", "discount", *steps.FLAGS)
WINDOW = 4096  # steps that are read together
WRONG_ENDS = "wrong last observation (a known fault of the D4RL builders)"
D4RL_OUTCOMES = (
    "the builder does not keep what the last step of an episode leads to: a terminal leads to a "
    "copy of its own observation, a step at a time limit to nothing"
)


def directory_source(directory: Path) -> ingest.Source:
    """A TFDS/RLDS dataset on disk.

    Args:
      directory: the one with `dataset_info.json`, or one with a single such directory below it.

    Raises:
      UsageError: there is no dataset, TFDS is missing, or a file of `rlds_writer` is damaged.
    """
    directory = find(directory)
    rlds_writer.verify(directory)
    tfds = _tfds()
    try:
        builder = tfds.builder_from_directory(str(directory))
        source = _source(builder, str(directory))
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    except Exception as error:  # damaged JSON files raise errors of many types
        raise UsageError(
            f"{directory} cannot be opened as a TFDS dataset: {ingest.first_line(error)}"
        ) from error
    sidecar = rlds_writer.read_sidecar(directory)
    if sidecar is None:
        return source
    origin = {name: value for name, value in sidecar.items() if name not in ("files", "spec")}
    spec = sidecar["spec"]
    return source._replace(
        provenance={**source.provenance, "written_by": origin},
        action=specs.action_from_json(spec["action"]),
        gamma=spec["gamma"],
        horizon=spec["horizon"],
        frame_stack=spec.get("frame_stack", 1),
        simulator=sidecar.get("simulator"),
    )


def builder_source(
    name: str, *, gamma: float, horizon: int, part: atari.Part = atari.Part()
) -> ingest.Source:
    """An official TFDS dataset, which TFDS downloads and prepares first where necessary.

    Args:
      name: `builder/config`, for example `rlu_control_suite/cartpole_swingup`.
      gamma: the benchmark's discount factor.
      horizon: longest episode in steps; 0 when unknown.
      part: the part of an Atari dataset.

    Raises:
      UsageError: TFDS or TensorFlow is missing, TFDS has no such dataset, or it cannot be prepared
        here.
    """
    tfds = _tfds()
    try:
        builder = tfds.builder(name)
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    except Exception as error:
        raise UsageError(f"TFDS has no dataset {name!r}: {ingest.first_line(error)}") from error
    try:
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    except Exception as error:
        raise UsageError(
            f"TFDS cannot prepare {name!r} here: {ingest.first_line(error)}; prepare it where "
            "there is a network, and give the directory that holds its dataset_info.json as the "
            "dataset's name"
        ) from error
    return _source(builder, name, part)._replace(gamma=gamma, horizon=horizon)


def find(directory: Path) -> Path:
    """The directory with `dataset_info.json`: this one or the single one below it.

    Raises:
      UsageError: there is none, or there are several.
    """
    if rlds_writer.is_rlds(directory):
        return directory
    below = sorted(path.parent for path in directory.rglob(rlds_writer.DATASET_INFO))
    if len(below) != 1:
        candidates = f": {', '.join(map(str, below[:3]))}" if below else ""
        raise UsageError(
            f"{directory} is no RLDS dataset: no dataset_info.json there, and "
            f"{len(below) or 'none'} below it{candidates}"
        )
    return below[0]


def has_wrong_ends(name: str) -> bool:
    """Whether all episodes of a builder end in an observation of another episode.

    The builders of files with `next_observations` (MuJoCo v2 always) take the last step's
    observation from the end of the file.
    """
    builder, _, config = name.partition("/")
    return builder.startswith("d4rl_mujoco_") and config.startswith("v2")


# --- reading ---


def _source(builder: Any, name: str, part: atari.Part = atari.Part()) -> ingest.Source:
    info = builder.info
    splits = ["train"] if not info.splits or "train" in info.splits else sorted(info.splits)
    full_name = (
        f"{builder.name}/{builder.builder_config.name}" if builder.builder_config else builder.name
    )
    if "steps" not in (info.features or {}):
        raise UsageError(f"{name} is no RLDS dataset: its examples have no `steps`")
    facts = {}
    if builder.name in atari.BUILDERS:
        splits = _chosen(info, splits, part, name)
        facts = _atari_facts(full_name)
    episodes = [_examples(builder, split, name) for split in splits]
    origin = {}
    batches = (_batch(steps) for split in episodes for steps in split)
    if builder.name in atari.BUILDERS and part.clipped:
        batches = map(_with_clipped_rewards, batches)
    elif full_name in d4rl.BY_TFDS:
        official = d4rl.BY_TFDS[full_name]
        wrong = has_wrong_ends(full_name)
        batches = map(functools.partial(_with_honest_end, wrong=wrong), batches)
        origin = {"semantics": [D4RL_OUTCOMES, *d4rl.semantics(official)]}
        facts = {"horizon": official.horizon, "simulator": official.simulator}
    return ingest.Source(
        batches=ingest.grouped(batches),
        unit_actions=full_name in d4rl.BY_TFDS or builder.name == CONTROL_SUITE,
        provenance={
            "source": "tfds",
            "builder": full_name,
            "builder_version": str(info.version),
            "splits": splits,
            **origin,
        },
        episodes=sum(info.splits[split].num_examples for split in splits) if info.splits else None,
        **facts,
    )


def _chosen(info: Any, available: Sequence[str], part: atari.Part, name: str) -> list[str]:
    """The splits of a part of an Atari dataset, without those that a small percentage empties."""
    chosen = atari.splits(available, part)
    if not info.splits:  # TFDS's mock data
        return chosen
    missing = [split for split in chosen if split.partition("[")[0] not in info.splits]
    if missing:
        raise UsageError(f"{name} has no split {missing[0]!r}; it has {', '.join(available)}")
    return [split for split in chosen if info.splits[split].num_examples]


def _atari_facts(full_name: str) -> dict[str, Any]:
    """Facts that the official data do not state."""
    game = atari.game_of(full_name.partition("/")[2])
    if game not in atari.NUM_ACTIONS:
        return {"frame_stack": atari.FRAME_STACK}
    action = DiscreteActions(atari.NUM_ACTIONS[game])
    return {"frame_stack": atari.FRAME_STACK, "action": action, "simulator": f"atari/{game}"}


def _examples(builder: Any, split: str, name: str) -> Iterator[Mapping[str, Any]]:
    """The stacked steps of each episode of a split."""
    read = (
        _from_array_record if builder.info.file_format.value == "array_record" else _from_tfrecord
    )
    try:
        yield from read(builder, split)
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    except Exception as error:  # damaged files raise errors of many types
        reason = ingest.first_line(error)
        raise UsageError(
            f"{name} cannot be read to its end: {reason}; fetch or write it again"
        ) from error


def _from_array_record(builder: Any, split: str) -> Iterator[Mapping[str, Any]]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_parser import ExampleParserNp

    features = builder.info.features["steps"].feature
    parser = ExampleParserNp(builder.info.features.get_serialized_info())
    source = builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    for index in range(len(source)):
        yield _decode(features, parser.parse_example(source[index])["steps"])


def _decode(feature: Any, stacked: Any) -> Any:
    """Decodes the columns `[T, ...]` of an episode; only encoded entries need a loop over steps."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: _decode(inner, stacked[key]) for key, inner in feature.items()}
    stored = feature.get_serialized_info()
    decoded = feature.get_tensor_info()
    stored_form = (getattr(stored, "shape", None), getattr(stored, "np_dtype", None))
    if stored_form == (decoded.shape, decoded.np_dtype):
        return stacked
    return np.stack([feature.decode_example_np(step) for step in stacked])


def _from_tfrecord(builder: Any, split: str) -> Iterator[Mapping[str, Any]]:
    tfds = _tfds()
    rlds = _rlds()
    config = tfds.ReadConfig(interleave_cycle_length=1)  # the files' own order
    for episode in builder.as_dataset(split=split, shuffle_files=False, read_config=config):
        windows = rlds.transformations.batch(episode["steps"], size=WINDOW, shift=WINDOW)
        parts = [jax.tree.map(np.asarray, window) for window in tfds.as_numpy(windows)]
        if parts:
            yield jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def _batch(stacked: Mapping[str, Any]) -> ingest.Batch:
    records = trees.unflatten(trees.flatten(stacked))
    if not any(flag in records for flag in steps.FLAGS):
        raise UsageError(
            f"steps hold none of {', '.join(steps.FLAGS)}: nothing marks how episodes end"
        )
    records.pop("infos", None)  # D4RL's simulator state: large, and no learner reads it
    return ingest.Batch(records=records, lengths=np.array([len(records["reward"])]))


def _with_clipped_rewards(batch: ingest.Batch) -> ingest.Batch:
    """Clips rewards to [-1, 1], as documented of the official Atari data but not done there."""
    reward = np.clip(batch.records["reward"], -1, 1)
    return batch._replace(records={**batch.records, "reward": reward})


def _with_honest_end(batch: ingest.Batch, *, wrong: bool) -> ingest.Batch:
    """Removes the invented observation that D4RL's builders append to an episode.

    It is zeros, or belongs to another episode. After a terminal a copy of the state before takes
    its place: it marks the outcome as unknown (`steps.from_transitions`), and nothing bootstraps
    from it. After a time limit the record is dropped: the episode is cut at the record before it.

    Args:
      batch: an episode.
      wrong: whether every episode of the builder has such a record; otherwise those that end in a
        terminal have, and those whose last action is zero, as the builders write it.
    """
    if len(batch.records["reward"]) < 2:
        return batch
    if batch.records["is_terminal"][-1]:
        repeated = jax.tree.map(
            lambda leaf: np.concatenate([leaf[:-1], leaf[-2:-1]]), batch.records["observation"]
        )
        return batch._replace(records={**batch.records, "observation": repeated})
    if not wrong and batch.records["action"][-1].any():
        return batch
    records = jax.tree.map(lambda column: column[:-1], dict(batch.records))
    return batch._replace(records=records, lengths=batch.lengths - 1, dropped={WRONG_ENDS: 1})


# --- optional libraries ---


def _tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise _missing(error) from error
    return tfds


def _missing(error: ImportError) -> UsageError:
    """The error for a missing module: TFDS itself, or a module that it imports on use."""
    if error.name and error.name.startswith("apache_beam"):
        return UsageError(
            "preparing this dataset needs Apache Beam: pip install apache-beam, or, for Atari, "
            "take rlu_atari_checkpoints_ordered, which holds the same games and does not need it"
        )
    module = (
        f"the module {error.name!r}" if error.name else f"a module ({ingest.first_line(error)})"
    )
    return UsageError(
        f"reading RLDS datasets with tensorflow-datasets needs {module}: pip install "
        "'offline_mbrl[data]'"
    )


def _rlds() -> Any:
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors are raised as exceptions too
        import rlds
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "this dataset is stored as TFRecord, which only TensorFlow reads: pip install "
            "'offline_mbrl[tfrecord]', or write it again with file_format='array_record'"
        ) from error
    return rlds
