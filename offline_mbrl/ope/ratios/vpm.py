"""Variational power method: the density ratio as the fixed point of the policy's flow, by power steps.

One network `tau(s, a) > 0`. With `tau_k` the previous iterate, `alpha_k = 1 / sqrt(k + 1)` and `x+` the visit after x
under the evaluated policy, a power step is some updates of (Wen, Dai, Li and Schuurmans, arXiv:2003.00722, section 3)

    min over tau, max over v of  1/2 E_D[tau(x)^2] - (1 - alpha_k) E_D[tau_k(x) tau(x)] - alpha_k E_D[tau_k(x) tau(x+)]
      + penalty (2 v (E_D[tau m] - 1) - v^2)

`x+` is `(s', a')` with probability `gamma discount` and a start `(s0, a0)` otherwise, `a0, a'` of the evaluated policy;
`m` is `ratios.mass`, 1 but at true terminals, so that tau is the density ratio wherever episodes end. Departures:

* the two cases of `x+` are weighed by their probabilities instead of drawn;
* `v` follows the running mean of its maximizer `E_D[tau m] - 1`, and the penalty is 0.1 where the public implementation
  has 10: it only fixes a scale that the estimate divides by, and with minibatches a large one drowns the power steps
  (on a chain of five states, 0.1 and 0 come within 3 % of the value, 10 stays at the data's mean reward);
* see also `ratios`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.networks import torsos
from offline_mbrl.ope import batches, critics
from offline_mbrl.ope.ratios import shared as ratios
from offline_mbrl.types import Array, EnvironmentSpec, Estimate, Learner, Metrics, Policy, PyTree


@dataclass(frozen=True)
class Config:
    """Ours throughout; the paper's appendix was not at hand."""

    num_updates: int = 100_000
    batch_size: int = 256  # transitions, and as many initial observations, per update
    hidden_layers: tuple[int, ...] = (256, 256)
    learning_rate: float = 1e-3  # Adam
    power_period: int = 10  # updates of one power step
    penalty: float = 0.1  # of E_D[tau m] away from 1
    multiplier_rate: float = 0.05  # of the running mean v
    averaged_updates: int = 1_000  # that the estimate is a mean over
    gamma: float | None = None  # None: the spec's
    bootstrap: bool = False  # each seed sees its own resample of the episodes


class State(NamedTuple):
    """Everything that an update needs; `target` and `scales` are constants, in the state so that they are vmapped."""

    params: PyTree
    previous_params: PyTree  # of tau_k
    opt_state: optax.OptState
    multiplier: Array  # [] v
    target: PyTree  # parameters of the policy that is evaluated
    scales: dict[str, Array]  # of `critics.scales`
    key_bootstrap: Array  # which resample of the episodes
    moments: ratios.Moments


# --- the method's own equations, one transition ---


def flow(next_tau: Array, initial_tau: Array, discount: Array, *, gamma: float) -> Array:
    """`E[tau(x+)]` over the two cases, `[]`: `gamma discount tau(s', a') + (1 - gamma discount) tau(s0, a0)`."""
    chex.assert_rank([next_tau, initial_tau, discount], 0)
    return gamma * discount * next_tau + (1.0 - gamma * discount) * initial_tau


def power_loss(tau: Array, next_tau: Array, previous_tau: Array, alpha: Array) -> Array:
    """`tau^2 / 2 - tau_k ((1 - alpha) tau + alpha tau(x+))`, `[]`."""
    chex.assert_rank([tau, next_tau, previous_tau, alpha], 0)
    return 0.5 * tau**2 - previous_tau * ((1.0 - alpha) * tau + alpha * next_tau)


# --- assembly ---


def make(
    config: Config, spec: EnvironmentSpec, target_policy: Policy
) -> tuple[Learner, Callable[[State, PyTree, Array], Estimate]]:
    """The learner and its read-out `(state, initial_observations [N, ...], key) -> Estimate`, of the state alone.

    `fit` is given `statistics` with those of the transitions, and `given={"target": params of the policy}`.

    Raises:
      UsageError: gamma is not inside [0, 1); when fitted: statistics or policy parameters are missing.
    """
    gamma = critics.discount_factor(config.gamma, spec, "vpm")
    init_network, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    optimizer = optax.adam(config.learning_rate)
    settings = {"gamma": gamma, "normalize": True, "over": float(config.averaged_updates)}

    def init(key: Array, example: batches.Batch, statistics: PyTree, given: PyTree) -> State:
        key_network, key_bootstrap = jax.random.split(key)
        params = init_network(key_network)
        return State(
            params, params, optimizer.init(params), jnp.zeros(()),
            critics.target_params(given, "vpm", target_policy, spec),
            critics.scales(statistics, "vpm"), key_bootstrap, ratios.start(example.num_transitions))  # fmt: skip

    def loss(params: PyTree, state: State, batch: batches.Batch, next_actions: Array, initial_actions: Array):
        at = lambda params, *inputs: jax.vmap(  # noqa: E731
            lambda *one: jax.nn.softplus(apply(params, state.scales, *one)[0]))(*inputs)  # fmt: skip
        data = batch.transition
        tau, previous = (at(each, data.observation, data.action) for each in (params, state.previous_params))
        weights, initial_weights = ratios.weights(
            state.key_bootstrap, batch, gamma=gamma, geometric=False, bootstrap=config.bootstrap)  # fmt: skip
        initial = batches.weighted_mean(at(params, batch.initial_observation, initial_actions), initial_weights)
        following = jax.vmap(lambda *one: flow(*one, gamma=gamma), (0, None, 0))(
            at(params, data.next_observation, next_actions), initial, data.discount)  # fmt: skip
        alpha = jax.lax.rsqrt(1.0 + state.moments.track.updates // config.power_period)
        power = batches.weighted_mean(jax.vmap(power_loss, (0, 0, 0, None))(tau, following, previous, alpha), weights)
        excess = batches.weighted_mean(tau * ratios.mass(data.discount, gamma), weights) - 1.0
        return power + config.penalty * 2.0 * state.multiplier * excess, (tau, weights, excess)

    def step(state: State, batch: batches.Batch, key: Array) -> tuple[State, Metrics]:
        key_next, key_initial = jax.random.split(key)
        next_actions = critics.actions(target_policy, state.target, batch.transition.next_observation, key_next)
        initial_actions = critics.actions(target_policy, state.target, batch.initial_observation, key_initial)
        (value, (tau, weights, excess)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state, batch, next_actions, initial_actions)  # fmt: skip
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        moments = ratios.follow(state.moments, tau, batch.transition, weights, **settings)
        due = moments.track.updates % config.power_period == 0
        return state._replace(
            params=params, opt_state=opt_state, moments=moments,
            previous_params=jax.tree.map(lambda new, old: jnp.where(due, new, old), params, state.previous_params),
            multiplier=state.multiplier + config.multiplier_rate * (excess - state.multiplier),
        ), {"loss/total": value, "ratio/mass": 1.0 + excess}  # fmt: skip

    def read_out(state: State, initial_observations: PyTree, key: Array) -> Estimate:
        del initial_observations, key  # the restarts have seen the initial observations
        return ratios.read_out(state.moments, width=ratios.width(state.scales, gamma), **settings)

    return Learner(batches.experience(config.batch_size), init, step, None, policy_params), read_out


def policy_params(state: State) -> dict[str, PyTree]:
    """What `density_ratio` needs."""
    return {"network": state.params, "scales": state.scales, "target": state.target}


def density_ratio(config: Config, spec: EnvironmentSpec) -> Callable[[PyTree, PyTree, Array], Array]:
    """`(learner.policy_params(state), observation, action) -> []`, the estimated `d_pi / d_D`."""
    _, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    return ratios.ratio(apply, jax.nn.softplus)
