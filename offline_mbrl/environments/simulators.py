"""Simulators by name: `family/Name?option=value`, for example `bsuite/catch?noise=0.1`.

Whatever the library behind it, `make` gives a `dm_env.Environment` in one convention:

* observations are one array: `uint8` frames, or `float32`; a dictionary is flattened with its keys in
  alphabetical order, each entry in C order;
* discrete actions are 0 .. A - 1; continuous ones are in [-1, 1] and are rescaled to the simulator's bounds here;
* a true terminal ends with discount 0, a time limit that is not part of the task with discount 1.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import dm_env
import jax
import numpy as np
from dm_env import specs

from offline_mbrl.environments import wrappers
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

# family -> (module with `names() -> list[str]` and `load(name, seed, **options) -> (environment, horizon)`, extra)
FAMILIES = {
    "bsuite": ("bsuite", "bsuite"),
    "control": ("control_suite", "control"),
    "gym": ("gymnasium", "gymnasium"),
    "atari": ("atari", "atari"),
}
OPTIONS = {
    "bsuite": ("noise",), "control": ("noise",), "gym": ("noise", "max_steps"),
    "atari": ("noise", "max_steps", "sticky", "skip"),
}  # fmt: skip
WHOLE = ("max_steps", "skip")  # the other options are probabilities


class Simulator(NamedTuple):
    """A parsed name."""

    family: str
    name: str
    options: Mapping[str, float]  # noise: probability of a random action; the others are the family's own


def make(simulator: str, *, seed: int) -> dm_env.Environment:
    """Builds a simulator.

    Args:
      simulator: `bsuite/catch`, `control/cartpole_swingup`, `gym/Hopper-v4`, `atari/Pong`. Options follow a `?`:
        `noise=0.1` replaces the action with that probability by a uniform one; `max_steps=500` (gym, atari) cuts
        episodes; `sticky=0` and `skip=2` (atari) are the probability that a frame repeats the previous action and
        the number of frames for which an action is held.
      seed: fixes the simulator's own randomness and the noise.

    Raises:
      UsageError: the name or an option is unknown, or the simulator's library is not installed.
    """
    parsed = parse(simulator)
    environment = wrappers.canonical(_load(parsed, seed)[0])
    if "noise" in parsed.options:
        environment = wrappers.with_action_noise(environment, parsed.options["noise"], seed=seed)
    return environment


def spec(simulator: str) -> EnvironmentSpec:
    """Shapes, bounds in the simulator's own units, and the longest episode; see `make` for the name and errors."""
    raw, horizon = _load(parse(simulator), 0)
    observation: Any = wrappers.canonical(raw).observation_spec()
    action: Any = raw.action_spec()
    if isinstance(action, specs.DiscreteArray):
        actions = DiscreteActions(int(action.num_values))
    else:
        bounds = (np.broadcast_to(bound, action.shape).ravel().tolist() for bound in (action.minimum, action.maximum))
        actions = BoundedActions(*(tuple(bound) for bound in bounds))
    raw.close()
    return EnvironmentSpec(jax.ShapeDtypeStruct(observation.shape, observation.dtype), actions, horizon=horizon)


def parse(simulator: str) -> Simulator:
    """Splits a name into family, name and checked options.

    Raises:
      UsageError: the family, an option, or an option's value is not understood.
    """
    path, mark, query = simulator.partition("?")
    family, _, name = path.partition("/")
    if family not in FAMILIES or not name:
        close = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"; did you mean {close[0]}/...?" if close and family not in FAMILIES else ""
        raise UsageError(f"unknown simulator {simulator!r}: expected FAMILY/NAME, FAMILY one of {list(FAMILIES)}{hint}")
    try:
        options = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True)) if mark else {}
    except ValueError:
        raise UsageError(f"simulator {simulator!r}: options are written ?name=value&name=value") from None
    return Simulator(family, name, {key: _option(simulator, family, key, text) for key, text in options.items()})


def _option(simulator: str, family: str, key: str, text: str) -> float:
    if key not in OPTIONS[family]:
        known = ", ".join(OPTIONS[family])
        raise UsageError(f"simulator {simulator!r}: unknown option {key!r}; {family} has: {known}")
    try:
        value = int(text) if key in WHOLE else float(text)
    except ValueError:
        value = -1
    valid = value >= 1 if key in WHOLE else 0 <= value <= 1
    if not valid:
        wanted = "a positive whole number" if key in WHOLE else "a probability from 0 to 1"
        raise UsageError(f"simulator {simulator!r}: option {key} must be {wanted}, got {text!r}")
    return value


def _load(parsed: Simulator, seed: int) -> tuple[dm_env.Environment, int]:
    """The simulator in its own units, and its longest episode in agent steps (0 when unknown)."""
    module, extra = FAMILIES[parsed.family]
    family = importlib.import_module(f"offline_mbrl.environments.{module}")
    try:
        _check_name(parsed, family.names)
        own = {option: value for option, value in parsed.options.items() if option != "noise"}
        return family.load(parsed.name, seed, **own)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"simulator {parsed.family}/{parsed.name} needs a package that is not installed ({error.name or error}): "
            f"pip install 'offline_mbrl[{extra}]'") from error  # fmt: skip


def _check_name(parsed: Simulator, names: Callable[[], list[str]]) -> None:
    known = names()
    if parsed.name in known:
        return
    lowered = {name.lower(): name for name in known}
    close = [lowered[name] for name in difflib.get_close_matches(parsed.name.lower(), lowered, n=3)]
    hint = ", ".join(f"{parsed.family}/{name}" for name in close or sorted(known)[:3])
    raise UsageError(f"unknown simulator '{parsed.family}/{parsed.name}'; the closest known: {hint}")
