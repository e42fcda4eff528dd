"""Episodes of a policy in a simulator: many at a time, all seeds of a run together, one jitted call per step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import environments
from offline_mbrl.evaluation import simulation
from offline_mbrl.types import Array, Policy, PyTree, UsageError


class Evaluation(NamedTuple):
    """What was played. The leading axis `S` is there when seeds were evaluated together."""

    returns: np.ndarray  # [S, num_episodes] or [num_episodes]   undiscounted unless asked; NaN where not finished
    lengths: np.ndarray  # same shape, int32 steps; 0 where not finished
    complete: bool  # every episode was finished
    message: str  # why not; empty when complete


def evaluate(policy: Policy, params: PyTree, simulator: str, *, seed: int, **settings: Any) -> Evaluation:
    """Plays episodes once; see `make_evaluator` for the settings, and use that to evaluate again and again."""
    return make_evaluator(policy, simulator, **settings)(params, seed=seed)


def make_evaluator(
    policy: Policy, simulator: str, *, num_episodes: int, greedy: bool, num_seeds: int | None = None,
    batch_size: int = 100, timeout: float = 60.0, make: Callable[..., Any] = environments.make, gamma: float = 1.0,
) -> Callable[..., Evaluation]:  # fmt: skip
    """Builds `evaluate(params, *, seed) -> Evaluation`; the policy is compiled on its first call and never again.

    `batch_size` simulators per seed play side by side, each a fixed number of episodes, so that long episodes count
    as much as short ones. Every seed of a run meets simulators and action keys of its own, so that scores of seeds are
    independent, as intervals over them take for granted.

    Args:
      policy: `mode` acts when `greedy`, else `sample`.
      simulator: a name for `make`.
      num_episodes: per seed.
      greedy: how to act.
      num_seeds: S when params carry a leading axis `[S, ...]`, None for one set of params.
      batch_size: simulators per seed. The episodes depend on it.
      timeout: seconds without an answer from the simulators that count as hanging.
      make: `(simulator, *, seed) -> dm_env.Environment`.
      gamma: discount factor of the returns; 1 for what scores are made of.

    Returns:
      The evaluator. It ends early, with `complete` False and a message, when a simulator raises or hangs; it raises
      UsageError when the simulator cannot be made or when the policy's actions do not fit it.

    Raises:
      UsageError: a number is not positive.
    """
    if min(num_episodes, batch_size, num_seeds or 1) < 1:
        raise UsageError(f"num_episodes, batch_size and num_seeds must be at least 1, got {num_episodes}, "
                         f"{batch_size}, {num_seeds}")  # fmt: skip
    width, lead = min(batch_size, num_episodes), () if num_seeds is None else (num_seeds,)
    act = jax.jit(_vectorize(policy, width, greedy=greedy, over_seeds=num_seeds is not None))

    def evaluator(params: PyTree, *, seed: int) -> Evaluation:
        sequences = np.random.SeedSequence(seed).spawn(num_seeds or 1)
        seeds = np.stack([one.generate_state(width) for one in sequences]) >> 1  # 31 bits: what every simulator takes
        key, returns = jax.random.key(seed), np.full((num_seeds or 1, num_episodes), np.nan)
        lengths = np.zeros(returns.shape, np.int32)

        def actions(observation: np.ndarray, t: int) -> np.ndarray:
            observation = observation.reshape(*lead, width, *observation.shape[1:])
            chosen = np.asarray(act(params, observation, key, np.uint32(t)))
            return chosen.reshape(-1, *chosen.shape[len(lead) + 1 :])

        message = ""
        try:
            running = simulation.start(
                lambda seed: make(simulator, seed=seed), seeds.ravel().tolist(), timeout=timeout)  # fmt: skip
            try:
                _play(running, actions, returns, lengths, width, gamma)
            finally:
                running.close()
        except simulation.SimulatorFailed as error:
            finished = int((lengths > 0).sum())
            message = f"{simulator}: {error}; {finished} of {returns.size} episodes were finished"
        returns, lengths = (found.reshape(*lead, num_episodes) for found in (returns, lengths))
        return Evaluation(returns, lengths, not message, message)

    return evaluator


def _vectorize(policy: Policy, width: int, *, greedy: bool, over_seeds: bool) -> Callable[..., Array]:
    """(params, observation [S?, W, ...], key, t) -> actions [S?, W, ...]; a key for every seed, slot and step."""
    choose = (lambda params, observation, key: policy.mode(params, observation)) if greedy else policy.sample
    one_seed = jax.vmap(choose, in_axes=(None, 0, 0))
    batched = jax.vmap(one_seed) if over_seeds else one_seed

    def keys_of(key: Array, index: Array, t: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, index), t)
        return jax.vmap(lambda slot: jax.random.fold_in(key, slot))(jnp.arange(width))

    def act(params: PyTree, observation: Array, key: Array, t: Array) -> Array:
        if not over_seeds:
            return batched(params, observation, keys_of(key, jnp.uint32(0), t))
        indices = jnp.arange(observation.shape[0], dtype=jnp.uint32)
        return batched(params, observation, jax.vmap(keys_of, (None, 0, None))(key, indices, t))

    return act


def _play(running: simulation.Simulation, actions: Callable[[np.ndarray, int], np.ndarray], returns: np.ndarray,
          lengths: np.ndarray, width: int, gamma: float) -> None:  # fmt: skip
    """Fills `returns` and `lengths` `[S, num_episodes]` in place: slot w of a seed plays its episodes w, w + W, ..."""
    num_seeds, num_episodes = returns.shape
    slots = np.tile(np.arange(width), num_seeds)
    quota = (num_episodes - slots + width - 1) // width
    played, total, steps = np.zeros_like(slots), np.zeros(len(slots)), np.zeros_like(slots)
    observation, active, t = running.first, quota > 0, 0
    while active.any():
        chosen = actions(observation, t)
        _check(chosen, running.action_spec)
        moment = running.step(chosen, active)
        total += gamma**steps * moment.reward  # steps before this one, in this episode
        steps, observation, t = steps + active, moment.observation, t + 1
        ended = np.flatnonzero(moment.last)
        where = ended // width, slots[ended] + played[ended] * width
        returns[where], lengths[where] = total[ended], steps[ended]
        played[ended] += 1
        total[ended] = steps[ended] = 0
        active = played < quota


def _check(actions: np.ndarray, spec: Any) -> None:
    """Refuses actions `[N, ...]` that the simulator does not have: of another shape or kind, out of range, NaN."""
    if actions.shape[1:] != spec.shape or (actions.dtype.kind in "iu") != (np.dtype(spec.dtype).kind in "iu"):
        raise UsageError(
            f"the policy gives actions of shape {actions.shape[1:]} and dtype {actions.dtype}, the simulator takes "
            f"shape {spec.shape} and dtype {np.dtype(spec.dtype)}")  # fmt: skip
    inside = (actions >= spec.minimum) & (actions <= spec.maximum)  # NaN is not
    if not inside.all():
        wrong = actions[~inside].ravel()[0]
        raise UsageError(f"the policy gave the action {wrong}, the simulator takes {spec.minimum} to {spec.maximum}")
