"""Variational power method: the density ratio as the fixed point of the policy's flow.

One network `tau(s, a) > 0`. With `tau_k` the previous iterate, `alpha_k = 1 / sqrt(k + 1)` but at
least `least_alpha`, and `x+` the visit after x under the evaluated policy, a power step is some
updates of (Wen, Dai, Li and
Schuurmans, arXiv:2003.00722, section 3)

    min over tau, max over v of
      1/2 E_D[tau(x)^2] - (1 - alpha_k) E_D[tau_k(x) tau(x)] - alpha_k E_D[tau_k(x) tau(x+)]
      + penalty (2 v (E_D[tau m] - 1) - v^2)

`x+` is `(s', a')` with probability `gamma discount` and a start `(s0, a0)` otherwise, `a0, a'` of
the evaluated policy; `m` is `ratios.mass`, 1 but at true terminals, so that tau is the density
ratio wherever episodes end. Departures:

* the two cases of `x+` are weighted by their probabilities instead of drawn;
* `v` follows the running mean of its maximizer `E_D[tau m] - 1`, and the penalty is 0.1 where the
  public implementation has 10: it only fixes a scale that the estimate divides by, and with
  minibatches a large one drowns the power steps (on a chain of five states, 0.1 and 0 come within
  3 % of the value, 10 stays at the data's mean reward);
* `least_alpha`, because what is left of the first ratio decays like `exp(-(1 - gamma) sum alpha_k)`
  where the policy mixes slowly, and `sum 1 / sqrt(k + 1)` needs `(3 / (2 - 2 gamma))^2` power steps
  for the 5 % that count as settled: 90,000 at gamma 0.995;
* `tau_k` is brought back to a mass of 0.9 or 1.1 where errors of power steps, which multiply, have
  led it further away: always dividing by its mass would add that estimate's noise to every step, in
  which the noise of tau and that of tau_k cancel (on a chain of five states, errors of up to 3 %
  became 1 to 5 %);
* see also `ratios.shared`.

Experimental: a power step that its updates do not finish moves what the policy mixes slowly, and
only the flow from the starts, a share `1 - gamma` of a step, leads it back. On a corridor at gamma
0.995 with exact expectations, 5 or 10 updates a power step can end up far from the value (0.3 to 27
where 18 is right) and 25 or more near it, whatever alpha; on sampled data of the control suite the
ranks of policies were no better than chance.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import policies
from offline_mbrl.networks import torsos
from offline_mbrl.ope import batches, convergence, critics
from offline_mbrl.ope.critics import FittedParams, Scales
from offline_mbrl.ope.ratios import shared as ratios
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Estimate,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Policy,
)

MASS_SLACK = 0.1  # of tau_k's mass around 1, within which it stays as it is


@dataclass(frozen=True)
class Config:
    """Ours throughout; the paper's appendix was not at hand."""

    num_updates: int = 100_000
    batch_size: int = 256  # transitions, and as many initial observations, per update
    hidden_layers: tuple[int, ...] = (256, 256)
    learning_rate: float = 1e-3  # Adam
    power_period: int = 10  # updates of one power step
    # Of a power step, in [0, 1]. None: what takes `num_updates` over four horizons, at most 1. The
    # paper has 0.
    least_alpha: float | None = None
    penalty: float = 0.1  # of E_D[tau m] away from 1
    multiplier_rate: float = 0.05  # of the running mean v
    averaged_updates: int = 1_000  # that the estimate is a mean over
    gamma: float | None = None  # None: the spec's
    bootstrap: bool = False  # each seed sees its own resample of the episodes


class State(NamedTuple):
    """What changes in an update, and which resample of the episodes this fit sees."""

    params: Params
    previous_params: Params  # of tau_k
    opt_state: optax.OptState
    multiplier: Array  # [] v
    previous_mass: Array  # [] mean of E_D[tau_k m] over this power step's batches
    flow_steps: Array  # [] sum of alpha_k, in steps of the policy
    bootstrap_key: Key
    moments: ratios.Moments


# --- the method's own equations, one transition ---


def flow(next_tau: Array, initial_tau: Array, discount: Array, *, gamma: float) -> Array:
    """`E[tau(x+)] = gamma discount tau(s', a') + (1 - gamma discount) tau(s0, a0)`, `[]`.

    Args:
      next_tau: `[]` at the next state and an action of the evaluated policy.
      initial_tau: `[]` mean over starts.
      discount: `[]` 0 at a true terminal, else 1.
      gamma: discount factor.
    """
    chex.assert_rank([next_tau, initial_tau, discount], 0)
    return gamma * discount * next_tau + (1.0 - gamma * discount) * initial_tau


def power_loss(tau: Array, next_tau: Array, previous_tau: Array, alpha: Array) -> Array:
    """`tau^2 / 2 - tau_k ((1 - alpha) tau + alpha tau(x+))`, `[]`.

    Args:
      tau: `[]` of the new iterate at x.
      next_tau: `[]` of the new iterate at x+.
      previous_tau: `[]` of the previous iterate at x.
      alpha: `[]` share of the power step.
    """
    chex.assert_rank([tau, next_tau, previous_tau, alpha], 0)
    return 0.5 * tau**2 - previous_tau * ((1.0 - alpha) * tau + alpha * next_tau)


# --- assembly ---


class _Method(NamedTuple):
    """The functions and constants of one configuration."""

    config: Config
    gamma: float
    averaging: ratios.Averaging
    policy: Policy  # the evaluated one
    least_alpha: float
    apply: critics.Critic  # [1], before the softplus
    optimizer: optax.GradientTransformation


class _Measured(NamedTuple):
    """What a loss finds out besides."""

    tau: Array  # [B]
    weights: Array  # [B] of the transitions
    excess: Array  # [] of the mass over 1
    previous_mass: Array  # [] mean of E_D[tau_k m] over this power step's batches


class _Drawn(NamedTuple):
    """What a loss needs besides the parameters."""

    scales: Scales
    batch: batches.Batch
    next_actions: Action
    initial_actions: Action


def make(config: Config, spec: EnvironmentSpec, policy: Policy) -> tuple[Learner, ratios.ReadOut]:
    """The learner and its read-out `(state, context, initial_observations, key) -> Estimate`.

    `fit` takes `context=Context(statistics=normalize.full_statistics(dataset),
    upstream={"target": params of the policy})`. The read-out uses neither the initial observations
    nor the key: the power steps have seen the data's.

    Args:
      config: the settings.
      spec: of the data.
      policy: the one to evaluate.

    Raises:
      UsageError: gamma is not inside [0, 1) or unknown, or the policy has a memory; when fitted:
        statistics or policy parameters are missing.
    """
    policy = policies.require_memoryless(policy, "vpm")
    gamma = critics.discount_factor(config.gamma, spec, "vpm")
    init_network, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    averaging = ratios.Averaging(gamma=gamma, normalize=True, over=float(config.averaged_updates))
    optimizer = optax.adam(config.learning_rate)
    method = _Method(
        config=config,
        policy=policy,
        least_alpha=_least_alpha(config, gamma),
        apply=apply,
        optimizer=optimizer,
        gamma=gamma,
        averaging=averaging,
    )

    def init(key: Key, example: batches.Batch, context: Context) -> State:
        critics.evaluated_policy_params(context, "vpm", policy, spec)
        critics.scales(context.statistics, "vpm")
        key_network, bootstrap_key = jax.random.split(key)
        params = init_network(key_network)
        return State(
            params=params,
            previous_params=params,
            opt_state=optimizer.init(params),
            multiplier=jnp.zeros(()),
            previous_mass=jnp.ones(()),
            flow_steps=jnp.zeros(()),
            bootstrap_key=critics.resample_key(context, bootstrap_key),
            moments=ratios.start(example.num_transitions),
        )

    def step(
        state: State, context: Context, batch: batches.Batch, key: Key
    ) -> tuple[State, Metrics]:
        return _update(method, state, context, batch, key)

    def read_out(
        state: State, context: Context, initial_observations: Observation, key: Key
    ) -> Estimate:
        del initial_observations, key
        width = critics.return_range(critics.scales(context.statistics, "vpm"), gamma)
        estimate = ratios.read_out(state.moments, averaging, width=width)
        needed = convergence.HORIZONS / (1.0 - gamma)
        return _with_flow_steps(estimate, state.flow_steps, needed)

    learner = Learner(
        sample=batches.Experience(config.batch_size),
        init=init,
        step=step,
        policy=None,
        policy_params=policy_params,
    )
    return learner, read_out


def policy_params(state: State, context: Context) -> FittedParams:
    """What `density_ratio` needs."""
    return FittedParams(
        network=state.params,
        scales=critics.scales(context.statistics, "vpm"),
        policy=context.upstream[critics.TARGET],
    )


def density_ratio(
    config: Config, spec: EnvironmentSpec
) -> Callable[[FittedParams, Observation, Action], Array]:
    """`(learner.policy_params(state, context), observation, action) -> []`: `d_pi / d_D`."""
    _, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    return ratios.ratio(apply, jax.nn.softplus)


def alpha_of(power_step: Array, least_alpha: float) -> Array:
    """`max(1 / sqrt(k + 1), least_alpha)`, the share of power step k, `[]`."""
    return jnp.maximum(jax.lax.rsqrt(1.0 + power_step), least_alpha)


def _least_alpha(config: Config, gamma: float) -> float:
    if config.least_alpha is not None:
        return config.least_alpha
    power_steps = config.num_updates / config.power_period
    return min(1.0, convergence.PLANNED_HORIZONS / (1.0 - gamma) / power_steps)


def _with_flow_steps(estimate: Estimate, flow_steps: Array, needed: float) -> Estimate:
    """The estimate with `flow_steps`, and `updates_too_few` where they are fewer than needed.

    The sum of many alphas has rounding errors, which count as nothing.
    """
    too_few = jnp.asarray(flow_steps < (1.0 - 1e-3) * needed, jnp.float32)
    settling = {
        "flow_steps": flow_steps,
        "updates_too_few": jnp.maximum(estimate.diagnostics["updates_too_few"], too_few),
    }
    return estimate._replace(diagnostics={**estimate.diagnostics, **settling})


def _update(
    method: _Method, state: State, context: Context, batch: batches.Batch, key: Key
) -> tuple[State, Metrics]:
    """One step of the optimizer within a power step."""
    config = method.config
    policy_params = context.upstream[critics.TARGET]
    key_next, key_initial = jax.random.split(key)
    next_observation = batch.transition.next_observation
    drawn = _Drawn(
        scales=critics.scales(context.statistics, "vpm"),
        batch=batch,
        next_actions=critics.actions(method.policy, policy_params, next_observation, key_next),
        initial_actions=critics.actions(
            method.policy, policy_params, batch.initial_observation, key_initial
        ),
    )
    power_step = state.moments.convergence.updates // config.power_period
    alpha = alpha_of(power_step, method.least_alpha)
    loss = functools.partial(_loss, method, state, drawn, alpha)
    (value, measured), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    excess = measured.excess
    updates, opt_state = method.optimizer.update(gradient, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    moments = ratios.follow(
        state.moments, measured.tau, batch.transition, measured.weights, method.averaging
    )
    state = state._replace(
        params=params,
        previous_params=optax.periodic_update(
            params, state.previous_params, moments.convergence.updates, config.power_period
        ),
        opt_state=opt_state,
        multiplier=state.multiplier + config.multiplier_rate * (excess - state.multiplier),
        previous_mass=measured.previous_mass,
        flow_steps=state.flow_steps + alpha / config.power_period,
        moments=moments,
    )
    return state, {"loss/total": value, "ratio/mass": 1.0 + excess}


def _loss(
    method: _Method, state: State, drawn: _Drawn, alpha: Array, params: Params
) -> tuple[Array, _Measured]:
    """The loss `[]` of a batch, and what else is measured with it."""
    config = method.config
    batch = drawn.batch
    data = batch.transition

    def ratios_of(params: Params, observations: Observation, actions: Action) -> Array:
        def positive(observation: Observation, action: Action) -> Array:
            return jax.nn.softplus(method.apply(params, drawn.scales, observation, action)[0])

        return jax.vmap(positive)(observations, actions)

    tau = ratios_of(params, data.observation, data.action)
    next_tau = ratios_of(params, data.next_observation, drawn.next_actions)
    initial_tau = ratios_of(params, batch.initial_observation, drawn.initial_actions)
    weights, initial_weights = ratios.weights(
        state.bootstrap_key,
        batch,
        gamma=method.gamma,
        geometric=False,
        bootstrap=config.bootstrap,
    )
    mean_initial_tau = batches.weighted_mean(initial_tau, initial_weights)
    flow_of = functools.partial(flow, gamma=method.gamma)
    following = jax.vmap(flow_of, (0, None, 0))(next_tau, mean_initial_tau, data.discount)
    previous_tau = ratios_of(state.previous_params, data.observation, data.action)
    masses = ratios.mass(data.discount, method.gamma)
    # A plain mean over the batches of this power step, in which tau_k stays the same.
    batch_mass = batches.weighted_mean(previous_tau * masses, weights)
    rate = 1.0 / (1.0 + state.moments.convergence.updates % config.power_period)
    previous_mass = state.previous_mass + rate * (batch_mass - state.previous_mass)
    # That of the batches before, whose errors are not those of this batch.
    divisor = state.previous_mass / jnp.clip(
        state.previous_mass, 1.0 - MASS_SLACK, 1.0 + MASS_SLACK
    )
    losses = jax.vmap(power_loss, (0, 0, 0, None))(tau, following, previous_tau / divisor, alpha)
    excess = batches.weighted_mean(tau * masses, weights) - 1.0
    constraint = config.penalty * 2.0 * state.multiplier * excess
    measured = _Measured(tau=tau, weights=weights, excess=excess, previous_mass=previous_mass)
    return batches.weighted_mean(losses, weights) + constraint, measured
