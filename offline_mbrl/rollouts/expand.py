"""Returns of every depth along one rollout: model rewards first, then a value.

With actions `a_t` of the policy in the model, from a first state and action,

    R_h = sum_{t < h} gamma^t r_t + gamma^h Q(s_h, a_h),  h = 0..H,

of every Q at once. Q is evaluated inside the scan, so that no state is kept. Steps and keys are
those of `unroll`: `a_h` is the action that a longer rollout takes there.

Source: model-based value expansion (arXiv:1803.00101, equation 3).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.rollouts.adjust import Adjust, identity
from offline_mbrl.rollouts.shares import Run
from offline_mbrl.rollouts.step import (
    Bounds,
    Inputs,
    Setting,
    State,
    act,
    advance,
    no_measure,
    start,
)
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
)

# (one observation, one action) -> values [M]
Values = Callable[[Observation, Action], Array]


class Expansion(NamedTuple):
    """What one rollout gives."""

    returns: Array  # [H + 1, M]
    # [H + 1] bool: within h steps the episode ended, or a prediction was not finite
    ended: Array


class _Carry(NamedTuple):
    """Between two depths."""

    state: State
    choice: tuple[Action, PyTree]  # the next action, and the actor's carry
    reward: Array  # []   sum of discounted rewards so far
    weight: Array  # []   gamma^h, 0 after a terminal
    returns: Array  # [M] of the depth before


def expand(
    model: DynamicsModel,
    policy: Policy | Actor,
    values: Values,
    *,
    gamma: float,
    horizon: int,
    deep_values: Values | None = None,
    adjust: Adjust = identity,
    bounds: Bounds = (-1.0, 1.0),
) -> Run:
    """Expansions from one start.

    The reward of a transition that terminates counts, and no value follows it. Where a prediction
    is not finite the step did not happen, and deeper returns are that of the depth before.

    Args:
      model: steps from one observation to the next.
      policy: its `sample`, or an actor's `act`, chooses actions.
      values: M values of a state and an action.
      gamma: discount factor.
      horizon: H, the deepest return; 0 asks nothing of the model.
      deep_values: in their place for h >= 1, for example in lower precision.
      adjust: what becomes of each prediction.
      bounds: of continuous actions; None leaves them as they are.

    Returns:
      A rollout whose result is an `Expansion`.

    Raises:
      UsageError: when called, `adjust` compares members and there is a single one.
    """
    setting = Setting(model, policies.as_actor(policy), adjust, no_measure, bounds)
    deep_values = deep_values or values

    def rollout(
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> Expansion:
        key_reset, key_steps = jax.random.split(key)
        inputs = Inputs(model_params, policy_params, first_action, key_steps)

        def deepen(carry: _Carry, t: Array) -> tuple[_Carry, tuple[Array, Array]]:
            carry = _deepened(setting, inputs, deep_values, gamma, carry, t)
            return carry, (carry.returns, ~carry.state.alive)

        state = start(setting, inputs, observation, key_reset)
        choice = act(setting, inputs, state, 0)
        first = values(observation, choice[0])
        if not horizon:
            return Expansion(returns=first[None], ended=jnp.zeros(1, bool))
        initial = _Carry(
            state=state, choice=choice, reward=jnp.zeros(()), weight=jnp.ones(()), returns=first
        )
        _, (deeper, ended) = jax.lax.scan(deepen, initial, jnp.arange(horizon))
        return Expansion(
            returns=jnp.concatenate([first[None], deeper]),
            ended=jnp.concatenate([jnp.zeros(1, bool), ended]),
        )

    return rollout


def _deepened(
    setting: Setting, inputs: Inputs, values: Values, gamma: float, carry: _Carry, t: Array
) -> _Carry:
    """The carry of depth t + 1 from that of depth t."""
    state, moment = advance(setting, inputs, carry.state, carry.choice, t)
    reward = carry.reward + carry.weight * moment.reward
    weight = carry.weight * gamma * moment.discount
    choice = act(setting, inputs, state, t + 1)
    returns = reward + weight * values(state.observation, choice[0]).astype(jnp.float32)
    return _Carry(
        state=state,
        choice=choice,
        reward=reward,
        weight=weight,
        returns=jnp.where(moment.diverged > 0, carry.returns, returns),
    )
