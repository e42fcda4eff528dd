"""Planning by shooting: sequences of actions are tried in an explicit model, and the better ones
decide the first action.

A candidate's value is the mean, over P particles, of

    sum_{t<H} gamma^t r_t + gamma^H tail(s_H, a_H),    a_H of the proposal policy

with the product of the model's discounts before each term, so that nothing counts after a terminal.
With H = 0 it is `tail(s_0, a_0)`, no model at all. All candidates and particles roll out in one
call; each particle keeps one elite member from start to end (TS-infinity of PETS,
arXiv:1805.12114), the members taking turns. A candidate of which any particle diverged has the
value -inf and is never chosen; where all did, the proposal policy acts itself.

A planner is an `Actor` with the parameters `{"model", "policy", ...}`, of which the tail may read
more; its plan is warm-started from step to step, shifted by one. What it may spend is a budget of
model steps for each action: the number of candidates is reduced to fit it, and where none is left
the proposal policy acts, with the same actions as without a planner.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.rollouts import shares
from offline_mbrl.rollouts.adjust import Adjust, identity
from offline_mbrl.rollouts.step import Bounds, clipped
from offline_mbrl.rollouts.unroll import discounted_return, unroll
from offline_mbrl.types import (
    Action,
    Actor,
    Array,
    DynamicsModel,
    Key,
    ModelParams,
    Observation,
    Params,
    Policy,
    PyTree,
    Trajectory,
    UsageError,
)

# (params of the planner, observation, action, key) -> [] value of what follows the horizon
Tail = Callable[[Params, Observation, Action, Key], Array]


def no_tail(params: Params, observation: Observation, action: Action, key: Key) -> Array:
    """Nothing counts after the horizon."""
    del params, observation, action, key
    return jnp.zeros(())


class Task(NamedTuple):
    """What is planned, the same for every planner. L below is `max(horizon, 1)` actions."""

    model: DynamicsModel
    policy: Policy  # the proposal: acts where no model step is spent, and chooses a_H
    action_size: int  # A
    horizon: int  # H, model steps of a candidate
    gamma: float
    tail: Tail = no_tail
    num_particles: int = 1  # P of each candidate
    adjust: Adjust = identity
    spread: shares.Spread = shares.by_member  # one with results [B]
    bounds: Bounds = (-1.0, 1.0)


class Candidates(NamedTuple):
    """Sequences that were tried."""

    actions: Action  # [N, L, A]   where particles differ, their mean
    values: Array  # [N]


class Decision(NamedTuple):
    """What a search leads to."""

    greedy: Action  # [A]
    sampled: Action  # [A]
    is_usable: Array  # [] bool, whether any candidate had a finite value


# (params, plan [L, A], observation, key, N) -> N candidates
Propose = Callable[[Params, Array, Observation, Key, int], Candidates]
# (params, carry, observation, key) -> (decision, carry)
Search = Callable[[Params, PyTree, Observation, Key], tuple[Decision, PyTree]]


# --- actors of rollouts: the planner's params and a "plan" [L, A]; the carry counts the steps ---


def _first_step(params: Params, observation: Observation, key: Key) -> Array:
    del params, observation, key
    return jnp.zeros((), jnp.int32)


def _carries_out(
    params: Params, carry: Array, observation: Observation, key: Key
) -> tuple[Action, Array]:
    del observation, key  # open loop
    return params["plan"][carry], carry + 1


plan_actor = Actor(init=_first_step, act=_carries_out)


def policy_actor(
    policy: Policy, *, noise: float, mixing: float, unit: Callable[[Params], Array]
) -> Actor:
    """`(1 - mixing) (a + noise unit eps) + mixing plan_t` with an action a of the policy."""

    def act(
        params: Params, carry: Array, observation: Observation, key: Key
    ) -> tuple[Action, Array]:
        key_action, key_noise = jax.random.split(key)
        action = policy.sample(params["policy"], observation, key_action)
        action = action + noise * unit(params) * jax.random.normal(key_noise, action.shape)
        return (1.0 - mixing) * action + mixing * params["plan"][carry], carry + 1

    return Actor(init=_first_step, act=act)


# --- candidates ---


class _Start(NamedTuple):
    """What differs between rollouts."""

    observation: Observation
    plan: Array  # [L, A]


def evaluate(
    task: Task, actor: Actor, params: Params, plans: Array, observation: Observation, key: Key
) -> Candidates:
    """All candidates and particles in one batch of N P rollouts, particles of a candidate together.

    Args:
      task: model, policy, tail and horizon.
      actor: with the parameters of the planner and the "plan"; particles share its first action.
      params: of the planner.
      plans: `[N, L, A]`.
      observation: one.
      key: consumed.
    """
    key_first, key_rollouts = jax.random.split(key)
    num_candidates, length, _ = plans.shape
    first = _first_actions(task, actor, params, plans, observation, key_first)

    def repeated(leaf: Array) -> Array:
        return jnp.repeat(leaf, task.num_particles, axis=0)

    num_rows = num_candidates * task.num_particles
    observations = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_rows, *jnp.shape(leaf))), observation
    )
    starts = _Start(observation=observations, plan=repeated(plans))
    keys = jax.random.split(key_rollouts, num_rows)
    actions, values = _rollouts(task, actor)(params["model"], params, starts, keys, repeated(first))
    return Candidates(
        actions=jnp.mean(actions.reshape(num_candidates, -1, length, task.action_size), axis=1),
        values=jnp.mean(values.reshape(num_candidates, -1), axis=1),
    )


def _first_actions(
    task: Task, actor: Actor, params: Params, plans: Array, observation: Observation, key: Key
) -> Action:
    """`[N, A]`, within the bounds."""

    def first_action(plan: Array, key: Key) -> Action:
        own = {**params, "plan": plan}
        action, _ = actor.act(own, actor.init(own, observation, key), observation, key)
        return clipped(action, task.bounds)

    return jax.vmap(first_action)(plans, jax.random.split(key, plans.shape[0]))


def _rollouts(task: Task, actor: Actor) -> shares.Run:
    """Rollouts `[B]` to actions `[B, L, A]` and values `[B]`."""
    if not task.horizon:
        return _without_model(task)
    rollout = unroll(
        task.model, actor, horizon=task.horizon, adjust=task.adjust, bounds=task.bounds
    )

    def run(
        model_params: ModelParams,
        policy_params: Params,
        observation: _Start,
        key: Key,
        first_action: Action | None = None,
    ) -> tuple[Action, Array]:
        key_rollout, key_end = jax.random.split(key)
        own = {**policy_params, "plan": observation.plan}
        start = observation.observation
        trajectory = rollout(model_params, own, start, key_rollout, first_action)
        return trajectory.action, _value(task, policy_params, trajectory, key_end)

    return task.spread.apply(task.model, run)


def _value(task: Task, params: Params, trajectory: Trajectory, key: Key) -> Array:
    """The value of one rollout, `[]`."""
    key_action, key_tail = jax.random.split(key)
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory.observation)
    action = clipped(task.policy.sample(params["policy"], last, key_action), task.bounds)
    weight = jnp.prod(task.gamma * trajectory.discount)
    tail = task.tail(params, last, action, key_tail)
    # A tail that is not finite does not count after a terminal either.
    value = discounted_return(trajectory, task.gamma) + jnp.where(weight > 0, weight * tail, 0.0)
    return jnp.where(trajectory.extras["diverged"][-1] > 0, -jnp.inf, value)


def _without_model(task: Task) -> shares.Run:
    def run(
        model_params: ModelParams,
        policy_params: Params,
        observation: _Start,
        key: Key,
        first_action: Action | None = None,
    ) -> tuple[Action, Array]:
        del model_params
        assert first_action is not None
        over_rows = jax.vmap(task.tail, (None, 0, 0, 0))
        values = over_rows(policy_params, observation.observation, first_action, key)
        return first_action[:, None], values

    return run


# --- budgets ---


def model_steps(task: Task, num_candidates: int) -> int:
    """Model steps of so many candidates."""
    return num_candidates * task.num_particles * task.horizon


def affordable(
    task: Task,
    num_candidates: int,
    budget: int | None,
    total: Callable[[int], int] = int,
) -> int:
    """The largest number of candidates, up to `num_candidates`, whose model steps fit a budget.

    Args:
      task: its horizon and particles.
      num_candidates: asked for.
      budget: model steps for each action; None: as many as that takes; 0: no candidate.
      total: the number that a search tries in all its iterations, of the number in the first.

    Raises:
      UsageError: a number is negative.
    """
    if num_candidates < 1 or (budget is not None and budget < 0):
        raise UsageError(
            f"planner: num_candidates is {num_candidates} and the budget {budget}; give at least 1 "
            "candidate and 0 model steps"
        )
    if budget is None:
        return num_candidates
    fitting = (n for n in range(num_candidates, 0, -1) if model_steps(task, total(n)) <= budget)
    return next(fitting, 0) if budget else 0


# --- actors ---


def as_actor(task: Task, init: Callable[[Params], PyTree], search: Search) -> Actor:
    """The actor of a search; where it finds nothing usable the proposal policy acts.

    Args:
      task: its policy.
      init: (params) -> carry at the start of an episode.
      search: one decision.
    """

    def start(params: Params, observation: Observation, key: Key) -> PyTree:
        del observation, key
        return init(params)

    def act(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        key_search, key_policy = jax.random.split(key)
        decision, carry = search(params, carry, observation, key_search)
        instead = task.policy.sample(params["policy"], observation, key_policy)
        return jnp.where(decision.is_usable, decision.sampled, instead), carry

    def act_greedily(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        decision, carry = search(params, carry, observation, jax.random.split(key)[0])
        instead = task.policy.mode(params["policy"], observation)
        return jnp.where(decision.is_usable, decision.greedy, instead), carry

    return Actor(init=start, act=act, act_greedily=act_greedily)


def without_planning(policy: Policy) -> Actor:
    """The proposal policy on the parameters of a planner, nothing carried."""

    def init(params: Params, observation: Observation, key: Key) -> PyTree:
        del params, observation, key
        return ()

    def act(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        return policy.sample(params["policy"], observation, key), carry

    def act_greedily(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        del key
        return policy.mode(params["policy"], observation), carry

    return Actor(init=init, act=act, act_greedily=act_greedily)


def centered(task: Task) -> Array:
    """The plan `[L, A]` of zeros, with which an episode starts."""
    return jnp.zeros((max(task.horizon, 1), task.action_size))


def shifted(plan: Array) -> Array:
    """A plan `[..., L, A]` for the step after, its last action 0."""
    return jnp.roll(plan, -1, axis=-2).at[..., -1, :].set(0.0)


def unshifted(plan: Array) -> Array:
    """The plan as it is: MBOP's code mixes it in without a shift."""
    return plan
