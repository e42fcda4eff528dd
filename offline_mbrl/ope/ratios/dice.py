"""DICE: the density ratio of the policy to evaluate, as the saddle point of the regularized Lagrangian.

    min over nu, lambda, max over zeta of
      (1 - gamma) E[nu(s0, a0)] + lambda + E_D[zeta (c r + gamma discount nu(s', a') - nu - lambda m) - f(zeta)]

with `a0, a'` of the evaluated policy and `m` of `ratios.mass` (Yang, Nachum, Dai, Li and Schuurmans,
arXiv:2007.03438, equation 11). At the saddle point `zeta` is the density ratio. `PRESETS["best_dice"]`, the default, is
that paper's recommendation: reward in the residual, `lambda` learned, `zeta >= 0`, `f` half the square.
`PRESETS["dual_dice"]` is DualDICE (arXiv:1906.04733) with the settings of `policy_eval` in google-research: no
reward, no `lambda`, `zeta` of any sign, the estimate not normalized. Its `nu` is ours with the other sign.

Departures: rewards in the residual are standardized; initial observations are drawn with each batch (DualDICE's
reference takes all of them); Adam has no momentum in either preset (`dice_rl` has it); `m`, which keeps the
normalization right where episodes terminate; see also `ratios`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """BestDICE's settings (`dice_rl` in google-research); other methods in `PRESETS`."""

    num_updates: int = 100_000
    batch_size: int = 2048  # transitions, and as many initial observations, per update
    hidden_layers: tuple[int, ...] = (256, 256)  # of nu and of zeta
    reward_coef: float = 1.0  # c; 0 leaves the reward out of the residual
    normalize: bool = True  # lambda is learned, and the estimate divided by the ratio's mass
    positive: bool = True  # zeta is a square
    nu_learning_rate: float = 1e-4  # Adam; of lambda, too
    zeta_learning_rate: float = 1e-4
    b1: float = 0.0  # Adam; dice_rl has 0.9, with which the players circle each other on a chain of five states
    b2: float = 0.999
    weight_decay: float = 0.0  # per update, not times the learning rate
    geometric_sampling: bool = False  # weigh step t of an episode by gamma^t
    averaged_updates: int = 1_000  # that the estimate is a mean over; ours
    gamma: float | None = None  # None: the spec's
    bootstrap: bool = False  # each seed sees its own resample of the episodes


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "best_dice": {},
    "dual_dice": {
        "batch_size": 256, "reward_coef": 0.0, "normalize": False, "positive": False, "nu_learning_rate": 1e-4,
        "zeta_learning_rate": 1e-3, "b1": 0.0, "b2": 0.99, "weight_decay": 1e-5},
}  # fmt: skip


class State(NamedTuple):
    """Everything that an update needs; `target` and `scales` are constants, in the state so that they are vmapped."""

    params: dict[str, PyTree]  # nu, zeta, lambda_
    opt_state: optax.OptState
    target: PyTree  # parameters of the policy that is evaluated
    scales: dict[str, Array]  # of `critics.scales`
    key_bootstrap: Array  # which resample of the episodes
    moments: ratios.Moments


# --- the method's own equations, one transition ---


def half_square(x: Array) -> Array:
    """`x^2 / 2`, the regularizer of both presets."""
    return 0.5 * x**2


def residual(nu: Array, next_nu: Array, lambda_: Array, reward: Array, discount: Array, *, gamma: float,
             reward_coef: float) -> Array:  # fmt: skip
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
    return reward_coef * reward + gamma * discount * next_nu - nu - lambda_ * ratios.mass(discount, gamma)


# --- assembly ---


def make(
    config: Config, spec: EnvironmentSpec, target_policy: Policy, *,
    regularizer: Callable[[Array], Array] = half_square,
) -> tuple[Learner, Callable[[State, PyTree, Array], Estimate]]:  # fmt: skip
    """The learner and its read-out `(state, initial_observations [N, ...], key) -> Estimate`, of the state alone.

    `fit` is given `statistics` with those of the transitions, and `given={"target": params of the policy}`.

    Args:
      config: the settings.
      spec: shapes.
      target_policy: the policy to evaluate.
      regularizer: f, of one ratio.

    Raises:
      UsageError: gamma is not inside [0, 1); when fitted: statistics or policy parameters are missing.
    """
    gamma = critics.discount_factor(config.gamma, spec, "dice")
    init_network, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    shape, optimizer = _shape(config), _optimizer(config)
    settings = {"gamma": gamma, "normalize": config.normalize, "over": float(config.averaged_updates)}

    def init(key: Array, example: batches.Batch, statistics: PyTree, given: PyTree) -> State:
        key_nu, key_zeta, key_bootstrap = jax.random.split(key, 3)
        params = {"nu": init_network(key_nu), "zeta": init_network(key_zeta), "lambda_": jnp.zeros(())}
        target = critics.target_params(given, "dice", target_policy, spec)
        return State(params, optimizer.init(params), target, critics.scales(statistics, "dice"), key_bootstrap,
                     ratios.start(example.num_transitions))  # fmt: skip

    def lagrangian(params: PyTree, state: State, batch: batches.Batch, actions: Array, initial_actions: Array):
        at = lambda name, *inputs: jax.vmap(  # noqa: E731
            lambda *one: apply(params[name], state.scales, *one)[0])(*inputs)  # fmt: skip
        data = batch.transition
        zeta = shape(at("zeta", data.observation, data.action))
        reward = (data.reward - state.scales["reward_mean"]) / state.scales["reward_std"]
        lambda_ = params["lambda_"] if config.normalize else jnp.zeros(())
        one = functools.partial(residual, gamma=gamma, reward_coef=config.reward_coef)
        delta = jax.vmap(one, (0, 0, None, 0, 0))(
            at("nu", data.observation, data.action), at("nu", data.next_observation, actions), lambda_, reward,
            data.discount)  # fmt: skip
        weights, initial_weights = ratios.weights(state.key_bootstrap, batch, gamma=gamma, bootstrap=config.bootstrap,
                                                  geometric=config.geometric_sampling)  # fmt: skip
        initial_nu = at("nu", batch.initial_observation, initial_actions)
        value = (1.0 - gamma) * batches.weighted_mean(initial_nu, initial_weights) + lambda_
        return value + batches.weighted_mean(zeta * delta - regularizer(zeta), weights), (zeta, weights)

    def step(state: State, batch: batches.Batch, key: Array) -> tuple[State, Metrics]:
        key_next, key_initial = jax.random.split(key)
        next_actions = critics.actions(target_policy, state.target, batch.transition.next_observation, key_next)
        initial_actions = critics.actions(target_policy, state.target, batch.initial_observation, key_initial)
        (value, (zeta, weights)), gradient = jax.value_and_grad(lagrangian, has_aux=True)(
            state.params, state, batch, next_actions, initial_actions)  # fmt: skip
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        moments = ratios.follow(state.moments, zeta, batch.transition, weights, **settings)
        return state._replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state, moments=moments
        ), {"loss/lagrangian": value, "ratio/mean": batches.weighted_mean(zeta, weights)}  # fmt: skip

    def read_out(state: State, initial_observations: PyTree, key: Array) -> Estimate:
        del initial_observations, key  # the saddle point has seen the initial observations
        return ratios.read_out(state.moments, width=ratios.width(state.scales, gamma), **settings)

    return Learner(batches.experience(config.batch_size), init, step, None, policy_params), read_out


def policy_params(state: State) -> dict[str, PyTree]:
    """What `density_ratio` needs."""
    return {"network": state.params["zeta"], "scales": state.scales, "target": state.target}


def density_ratio(config: Config, spec: EnvironmentSpec) -> Callable[[PyTree, PyTree, Array], Array]:
    """`(learner.policy_params(state), observation, action) -> []`, the estimated `d_pi / d_D`."""
    _, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    return ratios.ratio(apply, _shape(config))


def _shape(config: Config) -> Callable[[Array], Array]:
    return jnp.square if config.positive else lambda x: x


def _optimizer(config: Config) -> optax.GradientTransformation:
    """Adam for each part; zeta ascends."""
    one = functools.partial(critics.adam, b1=config.b1, b2=config.b2)
    return optax.partition({
        "nu": one(config.nu_learning_rate, config.weight_decay), "lambda_": one(config.nu_learning_rate, 0.0),
        "zeta": optax.chain(optax.scale(-1.0), one(config.zeta_learning_rate, config.weight_decay)),
    }, {"nu": "nu", "lambda_": "lambda_", "zeta": "zeta"})  # fmt: skip
