"""Names of datasets: the list of names, and their meaning."""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

from offline_mbrl.data.catalog import atari, bounded, d4rl, official, ogbench
from offline_mbrl.data.catalog.reference import Reference
from offline_mbrl.types import UsageError

VARIANT = re.compile(r"-(noise|fraction|episodes|seed|steps)(\d+(?:\.\d+)?)")
HDF5 = (".hdf5", ".h5")
OWN = ("rlds", "hdf5", "minari", "minari-id")  # kinds of data that are the user's


class Variant(NamedTuple):
    """How a `local/` dataset is generated; defaults do not show in its name."""

    noise: float = 0.0  # probability that the environment replaces an action by a uniform one
    # Percent of the run's episodes that are kept, spread over the run. The column store holds out
    # one in 20 of these, so that learners see 95 % of the run at 100.
    fraction: int = 100
    episodes: int = 0  # episodes of the run
    seed: int = 0
    steps: int = 0  # agent steps in total (Atari)


class Entry(NamedTuple):
    """The meaning of a name, known before any data are read."""

    name: str  # canonical
    kind: str  # local, tfds, rlds, hdf5, minari (a directory), minari-id, ogbench
    location: str  # environment, TFDS name, path or id
    simulator: str | None = None
    reference: Reference | None = None
    gamma: float = 0.99
    horizon: int = 0  # longest episode in steps; 0 when unknown
    variant: Variant = Variant()  # for local datasets
    part: atari.Part = atari.Part()  # for official Atari datasets
    task: int = 0  # of OGBench's data, counted from 1; 0: they have none
    action_bounds: str = ""  # stated beside the name; see `bounded`


def names() -> list[str]:
    """All names except variants, paths and ids."""
    return [
        *(f"local/{name}" for name in official.LOCAL),
        *(f"local/{name}" for name in official.LOCAL_RANDOM),
        *(f"local/atari/{game}" for game in atari.TRACKED),
        *(f"local/{name}" for name in official.LOCAL_CONTROL),
        *(f"local/{name}" for name in official.LOCAL_MUJOCO),
        *(f"local/{name}" for name in official.LOCAL_OGBENCH),
        *(f"local/{name}" for name in official.LOCAL_MAZE2D),
        *(f"rlu_control_suite/{task}" for task in official.CONTROL),
        *d4rl.BY_TFDS,
        *ogbench.names(),
        *(
            f"{builder}/{game}_run_{run}"
            for builder in atari.BUILDERS
            for game in official.ATARI_GAMES
            for run in range(1, atari.RUNS + 1)
        ),
    ]


def lookup(name: str) -> Entry:
    """The entry of a name, path or id.

    Raises:
      UsageError: the name is unknown (the closest ones are given), a variant is out of range, or a
        path is missing.
    """
    place, stated = bounded.split(name)
    if stated:
        return _stated(place, stated)
    if name.startswith("local/"):
        return _local(name)
    labelled = ogbench.parse(name)
    if labelled:
        return _ogbench(*labelled)
    if name in names():
        return _official(name)
    parsed = atari.parse(name)
    if parsed and parsed[0] in names():
        return _official(parsed[0])._replace(name=atari.full_name(*parsed), part=parsed[1])
    if name.startswith("minari:"):
        return Entry(name=name, kind="minari-id", location=name.removeprefix("minari:"))
    return _path(name)


def _stated(place: str, stated: str) -> Entry:
    """A name beside which the bounds of actions are stated."""
    entry = lookup(place)
    if entry.kind not in OWN:
        raise UsageError(f"{place} states the bounds of its actions itself: leave out {stated!r}")
    bounded.parse(stated)
    return entry._replace(name=f"{entry.name}{bounded.QUERY}{stated}", action_bounds=stated)


def local_name(environment: str, variant: Variant, task: int = 0) -> str:
    """The canonical name of a variant, for example `local/catch-noise0.1`.

    Args:
      environment: for example `catch`.
      variant: its settings.
      task: see `Entry`.
    """
    facts = _facts(environment)
    standard = Variant(episodes=facts.num_episodes, steps=facts.num_steps)
    suffixes = [
        f"-{setting}{value:g}" if setting == "noise" else f"-{setting}{value}"
        for setting, value in variant._asdict().items()
        if value != getattr(standard, setting)
    ]
    return f"local/{ogbench.joined(environment, task)}" + "".join(suffixes)


def recipe(entry: Entry) -> dict[str, float]:
    """The arguments of the collector of a `local/` dataset, besides the environment."""
    arguments = {"steps": "num_steps", "episodes": "num_episodes"}
    return {
        arguments.get(setting, setting): getattr(entry.variant, setting)
        for setting in _facts(entry.location).variants
    }


def _local(name: str) -> Entry:
    environment, task = ogbench.split(VARIANT.sub("", name.removeprefix("local/")))
    if not official.local(environment) or (task and environment not in official.LOCAL_OGBENCH):
        _unknown(name)
    facts = _facts(environment)
    settings = dict(VARIANT.findall(name))
    try:
        variant = Variant(
            noise=float(settings.get("noise", 0)),
            fraction=int(settings.get("fraction", 100)),
            episodes=int(settings.get("episodes", facts.num_episodes)),
            seed=int(settings.get("seed", 0)),
            steps=int(settings.get("steps", facts.num_steps)),
        )
    except ValueError as error:
        raise UsageError(
            f"dataset {name!r}: fraction, episodes, seed and steps are whole numbers"
        ) from error
    check(name, environment, variant)
    return Entry(
        name=local_name(environment, variant, task),
        kind="local",
        location=environment,
        simulator=_local_simulator(environment, facts, variant, task),
        reference=facts.reference,
        gamma=facts.gamma,
        horizon=facts.horizon,
        variant=variant,
        task=task,
    )


def _local_simulator(
    environment: str, facts: official.Local, variant: Variant, task: int
) -> str | None:
    if environment in official.LOCAL_OGBENCH:
        return ogbench.simulator(environment.removeprefix("ogbench/"), task)
    named = environment if "/" in environment else f"bsuite/{environment}"
    noise = f"?noise={variant.noise:g}" if variant.noise else ""
    return (facts.simulator or named) + noise


def check(name: str, environment: str, variant: Variant) -> None:
    """Refuses a variant that cannot be generated.

    Args:
      name: the dataset's name, for the message.
      environment: for example `catch` or `atari/Pong`.
      variant: its settings.

    Raises:
      UsageError: a number is out of range, the fraction does not divide 100, or the environment has
        no such variant.
    """
    facts = _facts(environment)
    counts_steps = facts.num_steps > 0
    for setting, default in Variant()._asdict().items():
        if setting not in facts.variants and getattr(variant, setting) != default:
            raise UsageError(
                f"dataset {name!r}: local/{environment} has no variant {setting!r}; it has: "
                f"{', '.join(facts.variants)}"
            )
    for setting, value, low, high in (
        ("noise", variant.noise, 0, 1),
        ("episodes", variant.episodes, 0 if counts_steps else 1, 10**9),
        ("seed", variant.seed, 0, 2**32 - 1),
        ("steps", variant.steps, int(counts_steps), 10**9),
    ):
        if not low <= value <= high:
            raise UsageError(
                f"dataset {name!r}: {setting} must be from {low} to {high}, got {value:g}"
            )
    official.check_fraction(variant.fraction)


def _facts(environment: str) -> official.Local:
    facts = official.local(environment)
    assert facts is not None
    return facts


def _official(name: str) -> Entry:
    builder, config = name.split("/")
    if builder == "rlu_control_suite":
        simulator = None if config in official.CONTROL_WITHOUT_SIMULATOR else f"control/{config}"
        return Entry(
            name=name,
            kind="tfds",
            location=name,
            simulator=simulator,
            gamma=official.CONTROL_GAMMA,
            horizon=official.CONTROL_HORIZON,
        )
    if builder in atari.BUILDERS:
        simulator = f"atari/{atari.game_of(config)}"
        return Entry(
            name=name,
            kind="tfds",
            location=name,
            simulator=simulator,
            reference=official.REFERENCES[simulator],
            horizon=atari.HORIZON,
        )
    return _d4rl(d4rl.BY_TFDS[name], name=name, kind="tfds", location=name)


def _ogbench(dataset: str, task: int) -> Entry:
    return Entry(
        name=f"ogbench/{ogbench.joined(dataset, task)}",
        kind="ogbench",
        location=dataset,
        simulator=ogbench.simulator(dataset, task),
        task=task,
    )


def _d4rl(dataset: d4rl.Official, *, name: str, kind: str, location: str) -> Entry:
    return Entry(
        name=name,
        kind=kind,
        location=location,
        simulator=dataset.simulator,
        reference=dataset.reference,
        horizon=dataset.horizon,
    )


def _path(name: str) -> Entry:
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix in HDF5:
            dataset = d4rl.by_file(path.stem)
            if dataset:
                return _d4rl(dataset, name=name, kind="hdf5", location=str(path))
            return Entry(name=name, kind="hdf5", location=str(path))
        raise UsageError(
            f"{name} is a file of unknown kind: give a {' or '.join(HDF5)} file or a directory"
        )
    if path.is_dir():
        is_minari = (path / "data" / "metadata.json").is_file() or (
            path / "main_data.hdf5"
        ).is_file()
        return Entry(name=name, kind="minari" if is_minari else "rlds", location=str(path))
    if path.suffix in HDF5 or name.startswith((".", "/", "~")):
        raise UsageError(f"there is no file or directory {name}")
    return _unknown(name)


def _unknown(name: str) -> Entry:
    stem = VARIANT.sub("", name)
    games = [f"local/{game}" for game in official.LOCAL_ATARI if stem.startswith("local/atari")]
    candidates = list(dict.fromkeys([*names(), *games]))
    close = difflib.get_close_matches(stem, candidates, n=3, cutoff=0.5)
    if not close:
        last_part = stem.split("/")[-1]
        close = [candidate for candidate in candidates if candidate.split("/")[-1] == last_part][:3]
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "`offline-mbrl data list` shows all, or give a path"
    )
    raise UsageError(f"unknown dataset {name!r}; {hint}")
