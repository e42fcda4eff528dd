"""Every dataset by name: what it is, how to get it, and the door through which training loads it.

Generated here   local/catch, local/cartpole, local/mountain_car; variants are written into the
name:
                 local/catch-noise0.1-fraction10-episodes200-seed1
                 local/atari/<Game>: scripted play, for example
                 local/atari/Pong-steps30000-episodes10-seed1 local/control/<task>: SAC policies of
                 every strength, for example local/control/cheetah_run-episodes30-seed1
Official         rlu_control_suite/<task>, rlu_atari/<Game>_run_<1..5>,
rlu_atari_checkpoints_ordered/<...>,
                 d4rl_mujoco_{ant,halfcheetah,hopper,walker2d}/<config>, d4rl_antmaze/<config>
                 parts of the Atari ones are written into the name: -percent10 (the first tenth of
                   the episodes of
                 every split), -checkpoints0-4 (of the ordered ones), -unclipped (rewards as they
                 are)
By path          a TFDS/RLDS directory, a Minari directory, a D4RL-style .hdf5 or .h5 file
By id            minari:<id>
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data import memory, normalize, specs, stream, trees
from offline_mbrl.data.catalog import official
from offline_mbrl.data.catalog.names import Entry, lookup, names, recipe
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
# Of those that a dataset has, what goes to the learner
EXTRAS = ("behavior_log_prob", "executed_action")
REFUSE, DROP_EPISODE = "refuse", "drop-episode"

# (environment, **names.recipe(entry)) -> episodes; see collect.bsuite, collect.atari and
# collect.control
Collect = Callable[..., Iterator[dict[str, Any]]]


class Loaded(NamedTuple):
    """A dataset, ready for training."""

    name: str
    # The training episodes; continuous actions in [-1, 1]; its columns may stay on the disk
    dataset: memory.Dataset
    validation: memory.Dataset | None
    spec: EnvironmentSpec
    statistics: normalize.Statistics  # of the training episodes' observations
    fingerprint: str
    simulator: str | None  # None: there is nothing to act in
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
    """Loads a dataset, and builds its column store first where that is absent.

    Args:
      name: see the top of this file.
      verify: `touched` checks the hashes of the fields that are read, `full` those of all.
      on_nonfinite: `refuse` data that hold NaN or infinities, or `drop-episode`: leave out the
        episodes that do.
      build: whether an absent store is built.
      collect: generates the episodes of `local/` datasets; only needed while such a dataset is
        absent.
      extras: further fields for the learner, where the dataset has them.
      stream_above: a split whose fields take more bytes stays on the disk (see `stream`); None for
        none.

    Raises:
      UsageError: the name is unknown, the data cannot be read, are damaged, not finite, or outside
        their range.
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
    return Loaded(
        entry.name,
        dataset,
        validation,
        spec,
        normalize.statistics(dataset),
        _fingerprint(opened, on_nonfinite),
        simulator,
        entry.reference or official.REFERENCES.get((simulator or "").split("?")[0]),
    )


def build(name: str, *, collect: Collect | None = None, force: bool = False) -> Path:
    """Makes the column store of a dataset unless it is there.

    Args:
      name: see the top of this file.
      collect: generates the episodes of `local/` datasets.
      force: make it anew, for `local/` from the first step.

    Returns:
      The store's directory.

    Raises:
      UsageError: the name is unknown, or the source cannot be had or read.
    """
    entry = lookup(name)
    directory = store_directory(entry)
    if force or not store.is_complete(directory):
        ingest.ingest(
            lambda: _source(entry, collect, force), directory, name=entry.name, force=force
        )
    return directory


def open_named(name: str, *, build: bool = True, collect: Collect | None = None) -> store.Store:
    """The open store of a dataset, for a look at its manifest or its columns; see `load`."""
    directory = store_directory(lookup(name))
    if not store.is_complete(directory):
        if not build:
            raise UsageError(f"{name} is not built yet: run `offline-mbrl data build {name}`")
        _build(name, collect=collect)
    return store.open_store(directory)


_build = build  # `load` and `open_named` have an argument of that name


def store_directory(entry: Entry) -> Path:
    """Where a dataset's column store is. A file that changes gets another store."""
    if entry.kind in ("local", "tfds"):
        return atomic.root() / "store" / entry.name
    location = Path(entry.location)
    content = [(str(location.resolve()), entry.kind)]
    for path in sorted([location, *location.rglob("*")]) if location.exists() else []:
        if path.is_file():
            content.append(
                (
                    str(path.relative_to(location)),
                    f"{path.stat().st_size} {path.stat().st_mtime_ns}",
                )
            )
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return atomic.root() / "store" / "path" / f"{location.stem or 'data'}-{key}"


def flattened(loaded: Loaded) -> Loaded:
    """The same with observations that are one vector `[D]`, where they are a dict of numbers; see
    `trees`."""
    if not trees.is_state(loaded.spec.observation):
        return _with_transitions(loaded)
    dataset, validation = (
        part and (stream.flattened if stream.on_disk(part) else trees.flatten_dataset)(part)
        for part in (loaded.dataset, loaded.validation)
    )
    assert dataset is not None
    mean, std, _ = loaded.statistics
    flat = normalize.Statistics(trees.observation_vector(mean), trees.observation_vector(std))
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
    found = normalize.transition_statistics(loaded.dataset)
    return loaded._replace(statistics=loaded.statistics._replace(transitions=found))


# --- sources ---


def _source(entry: Entry, collect: Collect | None, force: bool) -> ingest.Source:
    from offline_mbrl.data.sources import hdf5, minari, tfds

    if entry.kind == "local":
        return tfds.directory_source(_collected(entry, collect, force))
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
    """The RLDS dataset of a `local/` name; its episodes are generated if they are not there."""
    from offline_mbrl.data.sources import rlds_writer

    directory = atomic.root() / "rlds" / entry.name
    if force or not rlds_writer.is_rlds(directory):
        if collect is None:
            raise UsageError(
                f"{entry.name} is not generated yet: run `offline-mbrl data build {entry.name}`"
            )
        facts, variant = official.local(entry.location), recipe(entry)
        assert facts is not None
        told = {name.removeprefix("num_"): value for name, value in variant.items()}
        # Filled while the episodes pass by; written after the last of them
        policies: dict[str, Any] = {}
        told |= {"policies": policies} if entry.location in official.LOCAL_CONTROL else {}
        rlds_writer.write_rlds(
            directory,
            _noting(iter(collect(entry.location, **variant)), policies),
            action=facts.action,
            gamma=entry.gamma,
            horizon=entry.horizon,
            frame_stack=facts.frame_stack,
            force=force,
            metadata={
                "behavior": facts.behavior,
                "environment": entry.location,
                "simulator": entry.simulator,
                **told,
            },
        )
    return directory


def _noting(
    episodes: Iterator[dict[str, Any]], policies: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The episodes; `policies` then says how far each that played was trained, what it returned,
    and how often."""
    for episode in episodes:
        about = episode.get("metadata", {})
        if "policy_run" in about:
            key = f"run {about['policy_run']}, step {about['policy_step']}"
            noted = policies.setdefault(
                key, {"mean_return": round(about["policy_return"], 1), "episodes": 0}
            )
            noted["episodes"] += 1
        yield episode


# --- from the store to the learner ---


def _healthy(
    opened: store.Store, split: str, on_nonfinite: str, fields: tuple[str, ...]
) -> np.ndarray:
    """[E] bool: the split's episodes that are trained on."""
    found = opened.manifest["health"][split]
    nonfinite = [
        finding for finding in found["nonfinite"] if finding["field"].split("/")[0] in fields
    ]
    if nonfinite and on_nonfinite == REFUSE:
        raise UsageError(
            _describe(opened, split, nonfinite) + "; repair the source, or drop such episodes by "
            "`--on-nonfinite drop-episode`"
        )
    if found["action_range"]:
        raise UsageError(
            _describe(opened, split, found["action_range"])
            + "; rescale the actions, or state their "
            "bounds in the source"
        )
    chosen = np.ones(opened.columns[split][store.ENDS].shape, bool)
    chosen[[finding["episode"] for finding in nonfinite]] = False
    return chosen


def _describe(opened: store.Store, split: str, found: list[dict[str, Any]]) -> str:
    first = found[0]
    ends = {name: store.read(listed[store.ENDS]) for name, listed in opened.columns.items()}
    (place,) = columns.locate(ends, split, [first["row"]])
    dropped = " that hold a transition" if opened.manifest["counts"]["dropped"] else ""
    more = f" ({len(found) - 1} more such places)" if len(found) > 1 else ""
    return (
        f"{opened.manifest['name']}: field {first['field']!r} {first['message']} at step "
        f"{place.step} of episode {place.episode} (counted from 0 over the source's "
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
    part = (
        None
        if _stays_on_disk(opened, split, fields, stream_above)
        else store.aligned(opened, split, fields=fields)
    )
    if (
        not opened.columns.get(split)
        or not (chosen := _healthy(opened, split, on_nonfinite, fields)).any()
    ):
        return None
    if part is None:
        dataset = stream.open_split(opened, split, fields=fields, chosen=chosen)
    else:
        dataset = memory.from_columns(columns.take_episodes(part, chosen))
    if isinstance(action, DiscreteActions) or specs.has_unit_bounds(action):
        return dataset
    to_unit_bounds = functools.partial(specs.to_unit_bounds, action)
    if part is None:
        return dataset._replace(action=stream.mapped(dataset.action, to_unit_bounds))
    return dataset._replace(action=to_unit_bounds(np.asarray(dataset.action)))


def _stays_on_disk(
    opened: store.Store, split: str, fields: tuple[str, ...], stream_above: int | None
) -> bool:
    listed = opened.columns.get(split, {}).items()
    used = [one for path, one in listed if path != store.ENDS and path[1] in fields]
    size = sum(int(np.prod(one.shape)) * one.dtype.itemsize for one in used)
    return stream_above is not None and size > stream_above


def _fingerprint(opened: store.Store, on_nonfinite: str) -> str:
    whole = opened.manifest["fingerprint"]
    if on_nonfinite == REFUSE or not any(
        found["nonfinite"] for found in opened.manifest["health"].values()
    ):
        return whole
    return hashlib.sha256(f"{whole} {on_nonfinite}".encode()).hexdigest()


def _choose(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{argument}={value!r} is unknown; choose one of {', '.join(choices)}")
