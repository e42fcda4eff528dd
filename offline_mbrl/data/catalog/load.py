"""Datasets by name: what a name means, how the dataset is built, and how training loads it.

Generated here; variants are part of the name:
    local/{catch,cartpole,mountain_car}    local/catch-noise0.1-fraction10-episodes200-seed1
    local/catch-random and the others      local/catch-random-noise0.1-episodes200-seed1
    local/atari/<Game>, scripted play      local/atari/Pong-steps30000-episodes10-seed1
    local/control/<task>, SAC policies     local/control/cheetah_run-episodes30-seed1
    local/ogbench/<dataset>                local/ogbench/cube-single-play-singletask-task1

Official; parts of Atari datasets are part of the name: -percent10 (the first tenth of the episodes
of every split), -checkpoints0-4 (of the ordered datasets), -unclipped (rewards without clipping):

    rlu_control_suite/<task>
    rlu_atari/<Game>_run_<1..5>
    rlu_atari_checkpoints_ordered/<Game>_run_<1..5>
    d4rl_mujoco_{ant,halfcheetah,hopper,walker2d}/<config>
    d4rl_antmaze/<config>
    ogbench/<dataset>[-singletask-task<1..5>], from the user's files

By path: a TFDS/RLDS directory, a Minari directory, a D4RL-style .hdf5 or .h5 file. By id:
minari:<id>. `?actions=-2:2` after these states the bounds of actions; see `bounded`.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data import action_bounds, memory, normalize, specs, stream, trees
from offline_mbrl.data.catalog import bounded, official
from offline_mbrl.data.catalog.names import Entry, local_name, lookup, names, recipe
from offline_mbrl.data.catalog.official import Reference
from offline_mbrl.data.sources import ingest
from offline_mbrl.data.specs import spec_of
from offline_mbrl.data.store import atomic
from offline_mbrl.data.store import read as store
from offline_mbrl.data.store import write as columns
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

__all__ = [
    "Entry",
    "Loaded",
    "Reference",
    "build",
    "flattened",
    "load",
    "lookup",
    "names",
    "spec_of",
]

FIELDS = ("observation", "action", "reward", "discount")
EXTRAS = ("behavior_log_prob", "executed_action")  # further fields, where a dataset has them
FACTS = "action bounds may be assumed"  # of stores by path; a change builds them again
REFUSE = "refuse"
DROP_EPISODE = "drop-episode"

# (environment, **names.recipe(entry)) -> episodes, as `collect` of the modules in `collect`
Collect = Callable[..., Iterator[dict[str, Any]]]


class Loaded(NamedTuple):
    """A dataset, ready for training."""

    name: str
    dataset: memory.Dataset  # training episodes; its columns may stay on the disk
    validation: memory.Dataset | None
    spec: EnvironmentSpec
    statistics: normalize.Statistics  # of the training episodes
    fingerprint: str
    simulator: str | None  # None: policies cannot be played
    reference: Reference | None


def load(
    name: str,
    *,
    verify: str = "touched",
    on_nonfinite: str = REFUSE,
    build: bool = True,
    collect: Collect | None = None,
    extras: tuple[str, ...] = EXTRAS,
    stream_above: int | None = None,
) -> Loaded:
    """Loads a dataset with actions in [-1, 1] or integers; an absent column store is built first.

    Args:
      name: see the top of this file.
      verify: `touched` checks the hashes of the fields that are read, `full` those of all fields.
      on_nonfinite: `refuse` data with NaN or infinities, or `drop-episode`, which leaves out the
        episodes that hold any.
      build: whether an absent store is built.
      collect: generates the episodes of `local/` datasets; only needed while such a dataset is
        absent.
      extras: further fields for the learner, where the dataset has them.
      stream_above: splits whose fields take more bytes stay on the disk (see `stream`); None: no
        split does.

    Raises:
      UsageError: the name is unknown, or the data cannot be read, are damaged, not finite, or
        outside their range.
    """
    _choose("verify", verify, ("touched", "full"))
    _choose("on_nonfinite", on_nonfinite, (REFUSE, DROP_EPISODE))
    opened = open_named(name, build=build, collect=collect)
    if verify == "full":
        store.verify_all(opened)
    spec = specs.from_json(opened.manifest["spec"])
    dataset, validation = (
        _dataset(opened, split, spec.action, on_nonfinite, (*FIELDS, *extras), stream_above)
        for split in store.SPLITS
    )
    if dataset is None:
        raise UsageError(
            f"{name}: no training episode is left after dropping those that are not finite"
        )
    entry = lookup(name)
    simulator = entry.simulator or opened.manifest["simulator"]
    reference = entry.reference or official.REFERENCES.get((simulator or "").split("?")[0])
    return Loaded(
        name=entry.name,
        dataset=dataset,
        validation=validation,
        spec=spec,
        statistics=normalize.statistics(dataset),
        fingerprint=_fingerprint(opened, on_nonfinite),
        simulator=simulator,
        reference=reference,
    )


def build(name: str, *, collect: Collect | None = None, force: bool = False) -> Path:
    """Builds the column store of a dataset unless it exists.

    Args:
      name: see the top of this file.
      collect: generates the episodes of `local/` datasets.
      force: rebuild an existing store; `local/` episodes are generated again.

    Returns:
      The store's directory.

    Raises:
      UsageError: the name is unknown, or the source is not available or cannot be read.
    """
    entry = lookup(name)
    directory = store_directory(entry)
    if force or not store.is_complete(directory):
        ingest.ingest(
            lambda: _source(entry, collect, force), directory, name=entry.name, force=force
        )
    return directory


def open_named(name: str, *, build: bool = True, collect: Collect | None = None) -> store.Store:
    """Opens the store of a dataset, to read its manifest or its columns.

    Args:
      name: see the top of this file.
      build: whether an absent store is built.
      collect: generates the episodes of `local/` datasets.

    Raises:
      UsageError: the name is unknown, or the store is absent, damaged or cannot be built.
    """
    directory = store_directory(lookup(name))
    if not store.is_complete(directory):
        if not build:
            raise UsageError(f"{name} is not built yet: run `offline-mbrl data build {name}`")
        _build(name, collect=collect)
    return bounded.with_bounds(store.open_store(directory), lookup(name).action_bounds)


_build = build  # not hidden by the arguments of that name


def store_directory(entry: Entry) -> Path:
    """The directory of a dataset's column store; a source file that changes gets a new one."""
    if entry.kind in ("local", "tfds", "ogbench"):
        return atomic.root() / "store" / entry.name
    location = Path(entry.location)
    content = [(str(location.resolve()), entry.kind), ("facts", FACTS)]
    for path in sorted([location, *location.rglob("*")]) if location.exists() else []:
        if path.is_file():
            size_and_time = f"{path.stat().st_size} {path.stat().st_mtime_ns}"
            content.append((str(path.relative_to(location)), size_and_time))
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return atomic.root() / "store" / "path" / f"{location.stem or 'data'}-{key}"


def flattened(loaded: Loaded) -> Loaded:
    """Returns the dataset with dicts of numbers flattened to observations `[D]`; see `trees`."""
    if not trees.is_state(loaded.spec.observation):
        return _with_transitions(loaded)
    dataset, validation = (
        part and (stream.flattened if stream.on_disk(part) else trees.flatten_dataset)(part)
        for part in (loaded.dataset, loaded.validation)
    )
    assert dataset is not None
    flat = normalize.Statistics(
        mean=trees.observation_vector(loaded.statistics.mean),
        std=trees.observation_vector(loaded.statistics.std),
        returns=loaded.statistics.returns,
    )
    return _with_transitions(
        loaded._replace(
            dataset=dataset,
            validation=validation,
            spec=trees.flatten_spec(loaded.spec),
            statistics=flat,
        )
    )


def _with_transitions(loaded: Loaded) -> Loaded:
    """Adds the statistics of transitions where explicit models can be fitted: vectors in memory."""
    vectors = (
        isinstance(loaded.spec.action, BoundedActions)
        and getattr(loaded.dataset.observation, "ndim", 0) == 2
    )
    if not vectors or stream.on_disk(loaded.dataset):
        return loaded
    transitions = normalize.transition_statistics(loaded.dataset)
    return loaded._replace(statistics=loaded.statistics._replace(transitions=transitions))


# --- sources ---


def _source(entry: Entry, collect: Collect | None, force: bool) -> ingest.Source:
    from offline_mbrl.data.sources import hdf5, minari, ogbench, tfds

    if entry.kind == "ogbench":
        return ogbench.files_source(entry.location, entry.task)._replace(gamma=entry.gamma)
    if entry.kind == "local":
        steps = lookup(local_name(entry.location, entry.variant))  # without a task
        source = tfds.directory_source(_collected(steps, collect, force))
        family, _, dataset = entry.location.partition("/")
        return ogbench.labelled(source, dataset, entry.task) if family == "ogbench" else source
    if entry.kind == "tfds":
        return tfds.builder_source(
            entry.location, gamma=entry.gamma, horizon=entry.horizon, part=entry.part
        )
    if entry.kind == "rlds":
        return tfds.directory_source(Path(entry.location))
    if entry.kind == "hdf5":
        return hdf5.hdf5_source(Path(entry.location))
    return minari.minari_source(Path(entry.location) if entry.kind == "minari" else entry.location)


def _collected(entry: Entry, collect: Collect | None, force: bool) -> Path:
    """The RLDS dataset of a `local/` name; its episodes are generated if they are absent."""
    from offline_mbrl.data.sources import rlds_writer

    directory = atomic.root() / "rlds" / entry.name
    if force or not rlds_writer.is_rlds(directory):
        if collect is None:
            raise UsageError(
                f"{entry.name} is not generated yet: run `offline-mbrl data build {entry.name}`"
            )
        facts = official.local(entry.location)
        assert facts is not None
        arguments = recipe(entry)
        origin: dict[str, Any] = {
            name.removeprefix("num_"): value for name, value in arguments.items()
        }
        policies: dict[str, Any] = {}  # filled with every episode, written after the last one
        if entry.location in (official.LOCAL_CONTROL | official.LOCAL_MUJOCO):
            origin["policies"] = policies
        episodes = iter(collect(entry.location, **arguments))
        rlds_writer.write_rlds(
            directory,
            _record_policies(episodes, policies),
            action=facts.action,
            gamma=entry.gamma,
            horizon=entry.horizon,
            frame_stack=facts.frame_stack,
            force=force,
            metadata={
                "behavior": facts.behavior,
                "environment": entry.location,
                "simulator": entry.simulator,
                **origin,
            },
        )
    return directory


def _record_policies(
    episodes: Iterator[dict[str, Any]], policies: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yields the episodes, and counts in `policies` those of each policy beside its mean return."""
    for episode in episodes:
        metadata = episode.get("metadata", {})
        if "policy_run" in metadata:
            key = f"run {metadata['policy_run']}, step {metadata['policy_step']}"
            mean_return = round(metadata["policy_return"], 1)
            policy = policies.setdefault(key, {"mean_return": mean_return, "episodes": 0})
            policy["episodes"] += 1
        yield episode


# --- from the store to the learner ---


def _healthy(
    opened: store.Store, split: str, on_nonfinite: str, fields: tuple[str, ...]
) -> np.ndarray:
    """`[E]` bool: the episodes of a split that are used for training.

    Raises:
      UsageError: values are not finite and `on_nonfinite` is `refuse`, or actions are out of range.
    """
    health = opened.manifest["health"][split]
    nonfinite = [
        finding for finding in health["nonfinite"] if finding["field"].split("/")[0] in fields
    ]
    if nonfinite and on_nonfinite == REFUSE:
        raise UsageError(
            f"{_describe(opened, split, nonfinite)}; repair the source, or drop such episodes by "
            "`--on-nonfinite drop-episode`"
        )
    if health["action_range"]:
        place = _describe(opened, split, health["action_range"])
        raise UsageError(f"{place}; {action_bounds.REMEDY}")
    chosen = np.ones(opened.columns[split][store.ENDS].shape, bool)
    chosen[[finding["episode"] for finding in nonfinite]] = False
    return chosen


def _describe(opened: store.Store, split: str, findings: list[dict[str, Any]]) -> str:
    first = findings[0]
    ends = {name: store.read(listed[store.ENDS]) for name, listed in opened.columns.items()}
    rule = columns.held_out_after(opened.manifest.get("train_episodes"))
    (position,) = columns.locate(ends, split, [first["row"]], rule)
    dropped = " that hold a transition" if opened.manifest["counts"]["dropped"] else ""
    more = f" ({len(findings) - 1} more such places)" if len(findings) > 1 else ""
    return (
        f"{opened.manifest['name']}: field {first['field']!r} {first['message']} at step "
        f"{position.step} of episode {position.episode} (counted from 0 over the source's "
        f"episodes{dropped}){more}"
    )


def _dataset(
    opened: store.Store,
    split: str,
    action: DiscreteActions | BoundedActions,
    on_nonfinite: str,
    fields: tuple[str, ...],
    stream_above: int | None,
) -> memory.Dataset | None:
    """One split as a dataset; None if it is empty or all its episodes are dropped."""
    stays_on_disk = _stays_on_disk(opened, split, fields, stream_above)
    part = None if stays_on_disk else store.aligned(opened, split, fields=fields)
    if not opened.columns.get(split):
        return None
    chosen = _healthy(opened, split, on_nonfinite, fields)
    if not chosen.any():
        return None
    if part is None:
        dataset = stream.open_split(opened, split, fields=fields, chosen=chosen)
    else:
        dataset = memory.from_columns(columns.take_episodes(part, chosen))
    if isinstance(action, DiscreteActions) or specs.has_unit_bounds(action):
        return dataset
    to_unit_bounds = functools.partial(action_bounds.to_unit_bounds, action)
    if part is None:
        return dataset._replace(action=stream.mapped(dataset.action, to_unit_bounds))
    return dataset._replace(
        action=to_unit_bounds(np.asarray(dataset.action)),
        action_bounds=np.array([action.minimum, action.maximum], np.float32),
    )


def _stays_on_disk(
    opened: store.Store, split: str, fields: tuple[str, ...], stream_above: int | None
) -> bool:
    size = sum(
        int(np.prod(column.shape)) * column.dtype.itemsize
        for path, column in opened.columns.get(split, {}).items()
        if path != store.ENDS and path[1] in fields
    )
    return stream_above is not None and size > stream_above


def _fingerprint(opened: store.Store, on_nonfinite: str) -> str:
    content = opened.manifest["fingerprint"]
    is_finite = not any(health["nonfinite"] for health in opened.manifest["health"].values())
    if on_nonfinite == REFUSE or is_finite:
        return content
    return hashlib.sha256(f"{content} {on_nonfinite}".encode()).hexdigest()


def _choose(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{argument}={value!r} is unknown; choose one of {', '.join(choices)}")
