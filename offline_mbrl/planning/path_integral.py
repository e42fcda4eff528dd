"""Model predictive path integral control: the plan is the weighted mean of all candidates.

Candidates lie around the plan of the step before (MPPI, arXiv:1707.02342), or follow a policy
through the model: MBOP's planner (arXiv:2008.05556) and CRR's (arXiv:2104.13877) are
`along_policy`. Greedily it acts by the mean, else by the first action of a candidate that is drawn
by its weight.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.planning import improve, shooting
from offline_mbrl.planning.improve import Weigh
from offline_mbrl.planning.shooting import Candidates, Decision, Propose, Task
from offline_mbrl.types import Actor, Array, Key, Observation, Params


def _ones(params: Params) -> Array:
    del params
    return jnp.ones(())


def along_policy(
    task: Task,
    *,
    noise: float = 0.0,
    mixing: float = 0.0,
    unit: Callable[[Params], Array] = _ones,
) -> Propose:
    """Candidates that follow the proposal policy from state to state of the model.

    Args:
      task: what is planned.
      noise: deviation of normal noise on every action.
      mixing: share of the plan's action in it.
      unit: (params of the planner) -> [] or [A], in which `noise` is given.
    """
    actor = shooting.policy_actor(task.policy, noise=noise, mixing=mixing, unit=unit)

    def propose(
        params: Params, plan: Array, observation: Observation, key: Key, num_candidates: int
    ) -> Candidates:
        plans = jnp.broadcast_to(plan, (num_candidates, *plan.shape))
        return shooting.evaluate(task, actor, params, plans, observation, key)

    return propose


def around_plan(task: Task, *, std: float, smoothing: float = 1.0) -> Propose:
    """Sequences `u_t = smoothing (plan_t + std eps_t) + (1 - smoothing) u_{t-1}`, clipped.

    Args:
      task: what is planned.
      std: deviation of the noise.
      smoothing: 1 for noise that is independent from step to step; the first action is as drawn.
    """

    def propose(
        params: Params, plan: Array, observation: Observation, key: Key, num_candidates: int
    ) -> Candidates:
        key_noise, key_rollouts = jax.random.split(key)
        noise = jax.random.normal(key_noise, (num_candidates, *plan.shape))
        sequences = jax.vmap(lambda eps: _smoothed(plan + std * eps, smoothing))(noise)
        if task.bounds is not None:
            sequences = jnp.clip(sequences, *task.bounds)
        actor = shooting.plan_actor
        return shooting.evaluate(task, actor, params, sequences, observation, key_rollouts)

    return propose


def _smoothed(sequence: Array, smoothing: float) -> Array:
    """Exponential averages `[L, A]` of a sequence."""

    def step(before: Array, action: Array) -> tuple[Array, Array]:
        after = smoothing * action + (1.0 - smoothing) * before
        return after, after

    return jax.lax.scan(step, sequence[0], sequence)[1]


def mppi(
    task: Task,
    propose: Propose,
    weigh: Weigh,
    *,
    num_candidates: int,
    budget: int | None = None,
    shift: Callable[[Array], Array] = shooting.shifted,
) -> Actor:
    """The planner; its carry is the plan `[L, A]`.

    Args:
      task: what is planned.
      propose: `along_policy` or `around_plan`.
      weigh: values to weights, for example `improve.exponential(1.0)`.
      num_candidates: N.
      budget: model steps for each action; see `shooting.affordable`.
      shift: the plan to that of the next step.

    Raises:
      UsageError: no candidate, or a negative budget.
    """
    num_candidates = shooting.affordable(task, num_candidates, budget)
    if not num_candidates:
        return shooting.without_planning(task.policy)

    def search(
        params: Params, plan: Array, observation: Observation, key: Key
    ) -> tuple[Decision, Array]:
        key_candidates, key_draw = jax.random.split(key)
        candidates = propose(params, plan, observation, key_candidates, num_candidates)
        weights = weigh(candidates.values)
        plan = improve.average(weights, candidates.actions)
        drawn = jax.random.categorical(key_draw, jnp.log(weights))
        decision = Decision(
            greedy=plan[0],
            sampled=candidates.actions[drawn, 0],
            is_usable=jnp.any(jnp.isfinite(candidates.values)),
        )
        return decision, shift(plan)

    return shooting.as_actor(task, lambda params: shooting.centered(task), search)
