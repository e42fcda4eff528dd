"""Names of datasets: the list, and what a name says."""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

from offline_mbrl.data.catalog import atari, official
from offline_mbrl.data.catalog.official import Reference
from offline_mbrl.types import UsageError

VARIANT = re.compile(r"-(noise|fraction|episodes|seed|steps)(\d+(?:\.\d+)?)")
HDF5 = (".hdf5", ".h5")


class Variant(NamedTuple):
    """How a `local/` dataset was generated; the defaults do not show in its name."""

    noise: float = 0.0  # probability that the environment replaces an action by a uniform one
    fraction: int = 100  # percent of the run's episodes, spread over the whole run
    episodes: int = 0  # of the run
    seed: int = 0
    steps: int = 0  # agent steps in all (Atari)


class Entry(NamedTuple):
    """What a name says, before anything is read."""

    name: str  # canonical
    kind: str  # local, tfds, rlds, hdf5, minari (a directory), minari-id
    location: str  # environment, TFDS name, path, or id
    simulator: str | None = None
    reference: Reference | None = None
    gamma: float = 0.99
    horizon: int = 0  # longest episode in steps; 0 when unknown
    variant: Variant = Variant()  # of a local dataset
    part: atari.Part = atari.Part()  # of an official Atari dataset


def names() -> list[str]:
    """All names but variants, paths and ids."""
    return [
        *(f"local/{name}" for name in official.LOCAL),
        *(f"local/atari/{game}" for game in atari.TRACKED),
        *(f"local/{name}" for name in official.LOCAL_CONTROL),
        *(f"rlu_control_suite/{task}" for task in official.CONTROL),
        *(
            f"d4rl_mujoco_{task}/{config}"
            for task in official.D4RL_SIMULATORS
            for config in official.D4RL_CONFIGS
        ),
        *(f"d4rl_antmaze/{config}" for config in official.ANTMAZE_CONFIGS),
        *(
            f"{builder}/{game}_run_{run}"
            for builder in atari.BUILDERS
            for game in official.ATARI_GAMES
            for run in range(1, atari.RUNS + 1)
        ),
    ]


def lookup(name: str) -> Entry:
    """What a name says.

    Raises:
      UsageError: the name is unknown (the closest ones are given), a variant is out of range, or a
        path is missing.
    """
    if name.startswith("local/"):
        return _local(name)
    if name in names():
        return _official(name)
    parsed = atari.parse(name)
    if parsed and parsed[0] in names():
        return _official(parsed[0])._replace(name=atari.full_name(*parsed), part=parsed[1])
    if name.startswith("minari:"):
        return Entry(name, "minari-id", name.removeprefix("minari:"))
    return _path(name)


def local_name(environment: str, variant: Variant) -> str:
    """The canonical name of a variant, for example `local/catch-noise0.1`."""
    facts = _facts(environment)
    standard = Variant(episodes=facts.num_episodes, steps=facts.num_steps)
    told = [
        f"-{what}{value:g}" if what == "noise" else f"-{what}{value}"
        for what, value in variant._asdict().items()
        if value != getattr(standard, what)
    ]
    return f"local/{environment}" + "".join(told)


def recipe(entry: Entry) -> dict[str, float]:
    """What the collector of a `local/` dataset is told beside the environment."""
    arguments = {"steps": "num_steps", "episodes": "num_episodes"}
    return {
        arguments.get(what, what): getattr(entry.variant, what)
        for what in _facts(entry.location).variants
    }


def _local(name: str) -> Entry:
    environment = VARIANT.sub("", name.removeprefix("local/"))
    if not official.local(environment):
        _unknown(name)
    facts = _facts(environment)
    given = dict(VARIANT.findall(name))
    try:
        variant = Variant(
            float(given.get("noise", 0)),
            *(
                int(given.get(what, standard))
                for what, standard in (
                    ("fraction", 100),
                    ("episodes", facts.num_episodes),
                    ("seed", 0),
                    ("steps", facts.num_steps),
                )
            ),
        )
    except ValueError as error:
        raise UsageError(
            f"dataset {name!r}: fraction, episodes, seed and steps are whole numbers"
        ) from error
    check(name, environment, variant)
    simulator = environment if "/" in environment else f"bsuite/{environment}"
    simulator += f"?noise={variant.noise:g}" if variant.noise else ""
    return Entry(
        local_name(environment, variant),
        "local",
        environment,
        simulator,
        facts.reference,
        facts.gamma,
        facts.horizon,
        variant,
    )


def check(name: str, environment: str, variant: Variant) -> None:
    """Refuses a variant that cannot be generated.

    Raises:
      UsageError: a number is out of range, the fraction does not divide 100, or the environment has
        no such variant.
    """
    facts = _facts(environment)
    counts_steps = facts.num_steps > 0
    for what in Variant._fields:
        if what not in facts.variants and getattr(variant, what) != getattr(Variant(), what):
            has = ", ".join(facts.variants)
            raise UsageError(
                f"dataset {name!r}: local/{environment} has no variant {what!r}; it has: {has}"
            )
    for what, value, low, high in (
        ("noise", variant.noise, 0, 1),
        ("episodes", variant.episodes, 0 if counts_steps else 1, 10**9),
        ("seed", variant.seed, 0, 2**32 - 1),
        ("steps", variant.steps, int(counts_steps), 10**9),
    ):
        if not low <= value <= high:
            raise UsageError(
                f"dataset {name!r}: {what} must be from {low} to {high}, got {value:g}"
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
            name,
            "tfds",
            name,
            simulator,
            gamma=official.CONTROL_GAMMA,
            horizon=official.CONTROL_HORIZON,
        )
    if builder in atari.BUILDERS:
        simulator = f"atari/{atari.game_of(config)}"
        return Entry(
            name, "tfds", name, simulator, official.REFERENCES[simulator], horizon=atari.HORIZON
        )
    if builder == "d4rl_antmaze":
        return Entry(name, "tfds", name)
    task = builder.removeprefix("d4rl_mujoco_")
    return Entry(
        name,
        "tfds",
        name,
        official.D4RL_SIMULATORS[task],
        official.D4RL_REFERENCES[task],
        horizon=official.D4RL_HORIZON,
    )


def _path(name: str) -> Entry:
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix in HDF5:
            return Entry(name, "hdf5", str(path))
        raise UsageError(
            f"{name} is a file of unknown kind: give a {' or '.join(HDF5)} file or a directory"
        )
    if path.is_dir():
        is_minari = (path / "data" / "metadata.json").is_file() or (
            path / "main_data.hdf5"
        ).is_file()
        return Entry(name, "minari" if is_minari else "rlds", str(path))
    if path.suffix in HDF5 or name.startswith((".", "/", "~")):
        raise UsageError(f"there is no file or directory {name}")
    return _unknown(name)


def _unknown(name: str) -> Entry:
    stem = VARIANT.sub("", name)
    games = [f"local/{game}" for game in official.LOCAL_ATARI if stem.startswith("local/atari")]
    known = list(dict.fromkeys([*names(), *games]))
    close = difflib.get_close_matches(stem, known, n=3, cutoff=0.5)
    close = close or [one for one in known if one.split("/")[-1] == stem.split("/")[-1]][:3]
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "`offline-mbrl data list` shows all, or give a path"
    )
    raise UsageError(f"unknown dataset {name!r}; {hint}")
