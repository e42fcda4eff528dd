"""DICE: the density ratio of the evaluated policy as the saddle point of the Lagrangian.

    min over nu, lambda, max over zeta of
      (1 - gamma) E[nu(s0, a0)] + lambda
      + E_D[zeta (c r + gamma discount nu(s', a') - nu - lambda m) - f(zeta)]

with `a0, a'` of the evaluated policy and `m` of `ratios.mass` (Yang, Nachum, Dai, Li and
Schuurmans, arXiv:2007.03438, equation 11). At the saddle point `zeta` is the density ratio.
`PRESETS["best_dice"]`, the default, is that paper's recommendation: reward in the residual,
`lambda` learned, `zeta >= 0`, `f` half the square. `PRESETS["dual_dice"]` is DualDICE
(arXiv:1906.04733) with the settings of `policy_eval` in google-research: no reward, no `lambda`,
`zeta` of any sign, the estimate not normalized. Its `nu` is ours with the other sign.

Departures: rewards in the residual are standardized; initial observations are drawn with each batch
(DualDICE's reference takes all of them); Adam has no momentum in either preset (`dice_rl` has it);
`m`, which keeps the normalization right where episodes terminate; see also `ratios.shared`.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import policies
from offline_mbrl.networks import torsos
from offline_mbrl.ope import batches, critics
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


@dataclass(frozen=True)
class Config:
    """BestDICE's settings (`dice_rl` in google-research); other methods in `PRESETS`."""

    num_updates: int = 100_000
    batch_size: int = 2048  # transitions, and as many initial observations, per update
    hidden_layers: tuple[int, ...] = (256, 256)  # of nu and of zeta
    reward_coef: float = 1.0  # c; 0 leaves the reward out of the residual
    normalize: bool = True  # lambda is learned, and the estimate divided by the ratio's mass
    positive: bool = True  # zeta is a square
    nu_learning_rate: float = 1e-4  # Adam; of lambda, too
    zeta_learning_rate: float = 1e-4
    b1: float = 0.0  # Adam; dice_rl has 0.9, and the players circle each other on a small chain
    b2: float = 0.999
    weight_decay: float = 0.0  # per update, not times the learning rate
    geometric_sampling: bool = False  # weight step t of an episode by gamma^t
    averaged_updates: int = 1_000  # that the estimate is a mean over; ours
    gamma: float | None = None  # None: the spec's
    bootstrap: bool = False  # each seed sees its own resample of the episodes


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "best_dice": {},
    "dual_dice": {
        "batch_size": 256,
        "reward_coef": 0.0,
        "normalize": False,
        "positive": False,
        "nu_learning_rate": 1e-4,
        "zeta_learning_rate": 1e-3,
        "b1": 0.0,
        "b2": 0.99,
        "weight_decay": 1e-5,
    },
}


class State(NamedTuple):
    """What changes in an update, and which resample of the episodes this fit sees."""

    params: dict[str, Params]  # nu, zeta, lambda_
    opt_state: optax.OptState
    bootstrap_key: Key
    moments: ratios.Moments


# --- the method's own equations, one transition ---


def half_square(x: Array) -> Array:
    """`x^2 / 2`, the regularizer of both presets."""
    return 0.5 * x**2


def residual(
    nu: Array,
    next_nu: Array,
    lambda_: Array,
    reward: Array,
    discount: Array,
    *,
    gamma: float,
    reward_coef: float,
) -> Array:
    """`c r + gamma discount nu(s', a') - nu(s, a) - lambda m`, `[]`; a time limit is no terminal.

    Args:
      nu: `[]` at the data's state and action.
      next_nu: `[]` at the next state and an action of the evaluated policy.
      lambda_: `[]` multiplier of the normalization; 0 leaves it out.
      reward: `[]` standardized.
      discount: `[]` 0 at a true terminal, else 1.
      gamma: discount factor.
      reward_coef: c.
    """
    chex.assert_rank([nu, next_nu, lambda_, reward, discount], 0)
    flow = reward_coef * reward + gamma * discount * next_nu - nu
    return flow - lambda_ * ratios.mass(discount, gamma)


# --- assembly ---


class _Method(NamedTuple):
    """The functions and constants of one configuration."""

    config: Config
    gamma: float
    averaging: ratios.Averaging
    policy: Policy  # the evaluated one
    apply: critics.Critic  # of nu and of zeta, [1]
    regularizer: Callable[[Array], Array]
    optimizer: optax.GradientTransformation


def make(
    config: Config,
    spec: EnvironmentSpec,
    policy: Policy,
    *,
    regularizer: Callable[[Array], Array] = half_square,
) -> tuple[Learner, ratios.ReadOut]:
    """The learner and its read-out `(state, context, initial_observations, key) -> Estimate`.

    `fit` takes `context=Context(statistics=normalize.full_statistics(dataset),
    upstream={"target": params of the policy})`. The read-out uses neither the initial observations
    nor the key: the saddle point has seen the data's.

    Args:
      config: the settings.
      spec: of the data.
      policy: the one to evaluate.
      regularizer: f, of one ratio.

    Raises:
      UsageError: gamma is not inside [0, 1) or unknown, or the policy has a memory; when fitted:
        statistics or policy parameters are missing.
    """
    policy = policies.require_memoryless(policy, "dice")
    gamma = critics.discount_factor(config.gamma, spec, "dice")
    init_network, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    averaging = ratios.Averaging(
        gamma=gamma, normalize=config.normalize, over=float(config.averaged_updates)
    )
    method = _Method(
        config=config,
        gamma=gamma,
        averaging=averaging,
        policy=policy,
        apply=apply,
        regularizer=regularizer,
        optimizer=_optimizer(config),
    )

    def init(key: Key, example: batches.Batch, context: Context) -> State:
        critics.evaluated_policy_params(context, "dice", policy, spec)
        critics.scales(context.statistics, "dice")
        key_nu, key_zeta, bootstrap_key = jax.random.split(key, 3)
        params = {
            "nu": init_network(key_nu),
            "zeta": init_network(key_zeta),
            "lambda_": jnp.zeros(()),
        }
        return State(
            params=params,
            opt_state=method.optimizer.init(params),
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
        width = critics.return_range(critics.scales(context.statistics, "dice"), gamma)
        return ratios.read_out(state.moments, averaging, width=width)

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
        network=state.params["zeta"],
        scales=critics.scales(context.statistics, "dice"),
        policy=context.upstream[critics.TARGET],
    )


def density_ratio(
    config: Config, spec: EnvironmentSpec
) -> Callable[[FittedParams, Observation, Action], Array]:
    """`(learner.policy_params(state, context), observation, action) -> []`: `d_pi / d_D`."""
    _, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    return ratios.ratio(apply, _shape(config))


def _update(
    method: _Method, state: State, context: Context, batch: batches.Batch, key: Key
) -> tuple[State, Metrics]:
    """One step of all players on a batch."""
    policy_params = context.upstream[critics.TARGET]
    key_next, key_initial = jax.random.split(key)
    next_observation = batch.transition.next_observation
    next_actions = critics.actions(method.policy, policy_params, next_observation, key_next)
    initial_actions = critics.actions(
        method.policy, policy_params, batch.initial_observation, key_initial
    )
    weights = ratios.weights(
        state.bootstrap_key,
        batch,
        gamma=method.gamma,
        bootstrap=method.config.bootstrap,
        geometric=method.config.geometric_sampling,
    )
    scales = critics.scales(context.statistics, "dice")

    def objective(params: dict[str, Params]) -> tuple[Array, Array]:
        return _lagrangian(method, params, scales, batch, next_actions, initial_actions, weights)

    (value, zeta), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = method.optimizer.update(gradient, state.opt_state, state.params)
    step_weights, _ = weights
    state = state._replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        moments=ratios.follow(
            state.moments, zeta, batch.transition, step_weights, method.averaging
        ),
    )
    mean_ratio = batches.weighted_mean(zeta, step_weights)
    return state, {"loss/lagrangian": value, "ratio/mean": mean_ratio}


def _lagrangian(
    method: _Method,
    params: dict[str, Params],
    scales: Scales,
    batch: batches.Batch,
    next_actions: Action,
    initial_actions: Action,
    weights: tuple[Array, Array],
) -> tuple[Array, Array]:
    """The Lagrangian `[]` of a batch, and its ratios `[B]`."""
    config = method.config
    data = batch.transition
    step_weights, start_weights = weights

    def outputs(name: str, observations: Observation, actions: Action) -> Array:
        def output(observation: Observation, action: Action) -> Array:
            return method.apply(params[name], scales, observation, action)[0]

        return jax.vmap(output)(observations, actions)

    zeta = _shape(config)(outputs("zeta", data.observation, data.action))
    nu = outputs("nu", data.observation, data.action)
    next_nu = outputs("nu", data.next_observation, next_actions)
    initial_nu = outputs("nu", batch.initial_observation, initial_actions)
    reward = critics.standardized_reward(scales, data.reward)
    lambda_ = params["lambda_"] if config.normalize else jnp.zeros(())
    residual_of = functools.partial(residual, gamma=method.gamma, reward_coef=config.reward_coef)
    delta = jax.vmap(residual_of, (0, 0, None, 0, 0))(nu, next_nu, lambda_, reward, data.discount)
    start_value = (1.0 - method.gamma) * batches.weighted_mean(initial_nu, start_weights) + lambda_
    gain = batches.weighted_mean(zeta * delta - method.regularizer(zeta), step_weights)
    return start_value + gain, zeta


def _shape(config: Config) -> Callable[[Array], Array]:
    """The network's output to zeta."""
    return jnp.square if config.positive else _identity


def _identity(x: Array) -> Array:
    return x


def _optimizer(config: Config) -> optax.GradientTransformation:
    """Adam for each part; zeta ascends."""
    adam = functools.partial(critics.adam, b1=config.b1, b2=config.b2)
    descents: dict[Hashable, optax.GradientTransformation] = {
        "nu": adam(config.nu_learning_rate, config.weight_decay),
        "lambda_": adam(config.nu_learning_rate, 0.0),
        "zeta": optax.chain(
            optax.scale(-1.0), adam(config.zeta_learning_rate, config.weight_decay)
        ),
    }
    return optax.partition(descents, {name: name for name in descents})
