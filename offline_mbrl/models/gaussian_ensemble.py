"""Probabilistic ensembles as MBPO, MOPO and their kin train them; what their codes do differently are options.

A member tells a mean and a log variance per entry of (change of the observation, reward); the soft bounds of the log
variance are learned and shared by all members (PETS, arXiv:1805.12114, appendix A.1; MBPO, arXiv:1906.08253; MOPO,
arXiv:2005.13239). The reward is the last entry (MOPO's code has it first). Minibatches: see `fitting`.

What `PRESETS` do not take over: mbrl-lib and unifloral decay biases too; mbrl-lib takes the snapshot of all members
when one has improved; CBOP's two networks have losses of their own, here the reward is one of D entries of a mean
(which Adam undoes but for the weight of the bounds); unifloral standardizes no inputs, shows all members the same
batches and stops after 400 epochs; MOReL scales by the mean absolute deviation instead of the standard one, draws
initial biases too, stops after 25 epochs, holds nothing out, and is told the reward.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from offline_mbrl.models import coordinates, explicit, fitting
from offline_mbrl.models.density import Density, gaussian_log_prob, soft_bounds
from offline_mbrl.networks import torsos
from offline_mbrl.types import Array, DynamicsModel, EnvironmentSpec, Learner, PyTree, UsageError

FIT = fitting.Config(
    final_learning_rate=1.0, weight_decay=0.0, max_grad_norm=0.0, num_elites=5, max_held_out=1_000,
    held_out_fraction=0.2, patience=6)  # MOPO's code stops when its counter exceeds 5  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The released MOPO; what others do differently is in `PRESETS`."""

    num_members: int = 7
    hidden_layers: tuple[int, ...] = (200, 200, 200, 200)
    activation: Literal["swish", "relu"] = "swish"
    init: Literal["half_normal", "uniform", "lecun"] = "half_normal"  # see networks.torsos; lecun: flax's own
    bias: float = 0.0  # all biases at first
    decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # of each layer: decay / 2 * sum W^2; (): none
    lowest_log_variance: float = -10.0  # where the bounds start
    highest_log_variance: float = 0.5
    learned_bounds: bool = True
    bounds_coef: float = 0.01  # weight of sum(highest) - sum(lowest) in the loss
    separate_reward: bool = False  # the reward has its own network of the same shape
    deterministic: bool = False  # trained on the squared error; samples have no noise, the density deviation 1
    targets: Literal["raw", "standardized"] = "raw"
    keep: Literal["best", "last"] = "best"  # evaluation whose weights each member is handed on with
    fit: fitting.Config = field(default_factory=lambda: FIT)


PRESETS: dict[str, dict[str, Any]] = {
    "mopo": {},
    "offlinerl_kit": {"fit": replace(FIT, patience=5)},  # yihaosun1124/OfflineRL-Kit
    "mbrl_lib": {  # facebookresearch/mbrl-lib, GaussianMLP: fixed bounds, decay by the optimizer
        "decay": (), "learned_bounds": False,
        "fit": replace(FIT, weight_decay=1e-5, decoupled=False, patience=5, max_held_out=0),
    },
    "cbop": {  # the published command of Jeong et al. (ICLR 2023)
        "num_members": 30, "activation": "relu", "init": "uniform", "bias": 0.1, "decay": (), "separate_reward": True,
        "targets": "standardized",  # its resamples are drawn anew each epoch, so that every member sees all data
        "fit": replace(FIT, batch_size=1_024, bootstrap=False, num_elites=20, max_held_out=10_000, patience=5),
    },
    "unifloral": {  # EmptyJackson/unifloral, algorithms/dynamics.py
        "activation": "relu", "init": "lecun", "decay": (), "keep": "last",
        "fit": replace(FIT, weight_decay=2.5e-5, eps=1e-5, bootstrap=False, max_held_out=0, patience=0),
    },
    "morel": {  # aravindr93/mjrl, projects/morel, its D4RL configuration
        "num_members": 4, "hidden_layers": (512, 512), "activation": "relu", "init": "uniform", "decay": (),
        "deterministic": True, "separate_reward": True, "targets": "standardized", "keep": "last",
        "fit": replace(FIT, bootstrap=False, num_elites=0, patience=0),
    },
}  # fmt: skip

ACTIVATIONS = {"swish": jax.nn.silu, "relu": jax.nn.relu}
INITIALIZERS = {"half_normal": torsos.half_fan_in_normal, "uniform": torsos.fan_in_uniform,
                "lecun": lambda fan_in: jax.nn.initializers.lecun_normal()}  # fmt: skip
TARGETS = {"raw": coordinates.raw, "standardized": coordinates.standardized}


def density(config: Config, state_size: int, action_size: int) -> Density:
    """One member's density of D = state_size + 1 entries.

    Raises:
      UsageError: an option is unknown, the bounds leave no room, or `decay` has another number of layers.
    """
    _check(config)
    parts = {"state": state_size, "reward": 1} if config.separate_reward else {"all": state_size + 1}
    outputs_each = 1 if config.deterministic else 2
    networks = {name: _network(config, outputs_each * size) for name, size in parts.items()}
    bounds = {
        "lowest": jnp.full(state_size + 1, config.lowest_log_variance),
        "highest": jnp.full(state_size + 1, config.highest_log_variance)}  # fmt: skip

    def init(key: Array) -> PyTree:
        x, keys = jnp.zeros(state_size + action_size), jax.random.split(key, len(networks))
        return {name: torsos.init(network, keys[i], x) for i, (name, network) in enumerate(networks.items())}

    def heads(params: PyTree, shared: PyTree, x: Array) -> tuple[Array, Array]:
        parts = [jnp.split(torsos.apply(network, params[name], x), outputs_each) for name, network in networks.items()]
        mean, *raw = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        if config.deterministic:
            return mean, jnp.zeros_like(mean)
        (log_variance,), shared = raw, shared or bounds
        return mean, soft_bounds(log_variance, shared["lowest"], shared["highest"])

    def log_prob(params: PyTree, shared: PyTree, x: Array, y: Array) -> Array:
        mean, log_variance = heads(params, shared, x)
        return gaussian_log_prob(y, mean, 0.5 * log_variance)

    def loss(params: PyTree, shared: PyTree, x: Array, y: Array, weight: Array, key: Array) -> Array:
        del key  # deterministic
        return jnp.mean(weight * scaled_nll(y, *heads(params, shared, x)))

    def penalty(params: PyTree, shared: PyTree) -> Array:
        room = jnp.sum(shared["highest"] - shared["lowest"]) if shared else jnp.zeros(())
        return config.bounds_coef * room + sum((layer_decay(config.decay, part) for part in params.values()), 0.0)

    def moments(params: PyTree, shared: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
        del y  # no entry depends on another
        mean, log_variance = heads(params, shared, x)
        return mean, jnp.zeros_like(mean) if config.deterministic else jnp.exp(0.5 * log_variance)

    def sample(params: PyTree, shared: PyTree, x: Array, key: Array) -> Array:
        mean, std = moments(params, shared, x, x)
        return mean + std * jax.random.normal(key, mean.shape)

    learned = config.learned_bounds and not config.deterministic
    return Density(
        init=init, shared=lambda: bounds if learned else {}, loss=loss, penalty=penalty,
        log_prob=log_prob, sample=sample, mode=lambda params, shared, x: heads(params, shared, x)[0],
        moments=moments)  # fmt: skip


def scaled_nll(y: Array, mean: Array, log_variance: Array) -> Array:
    """`(mean - y)^2 exp(-log_variance) + log_variance`: twice the negative log-likelihood without its constant."""
    return jnp.square(mean - y) * jnp.exp(-log_variance) + log_variance


def layer_decay(decay: tuple[float, ...], params: PyTree) -> Array:
    """`sum_l decay_l / 2 * sum W_l^2` `[]` over the members' layers; biases are left alone."""
    squares = [jnp.sum(jnp.square(params[f"layer_{i}"]["kernel"])) for i in range(len(decay))]
    return 0.5 * sum((rate * square for rate, square in zip(decay, squares, strict=True)), jnp.zeros(()))


def make(
    config: Config, spec: EnvironmentSpec, *, draw: explicit.Draw = explicit.SAMPLE,
    terminate: Callable[[Array, Array, Array], Array] = explicit.never,
    continuation: explicit.Continuation | None = None,
) -> DynamicsModel:  # fmt: skip
    """The ensemble as a model; see `explicit.make`.

    Raises:
      UsageError: an option is unknown or does not fit the others, or the spec is not one of vectors.
    """
    return explicit.make(
        density(config, *explicit.sizes(spec)), spec, num_members=config.num_members, units=TARGETS[config.targets],
        draw=draw, terminate=terminate, continuation=continuation)  # fmt: skip


def learner(config: Config, model: DynamicsModel) -> Learner:
    """The fit of that model: members are judged by the squared error of their means on held-out targets.

    The preset's split and its early stop are applied by whoever runs the fit:

        dataset = splits.hold_out(dataset, **fitting.held_out_rule(config.fit))
        statistics = normalize.statistics(dataset)._replace(transitions=normalize.transition_statistics(dataset))
        fit(learner, dataset, hooks=fitting.hooks(config.fit), statistics=statistics, ...)
    """
    score = fitting.squared_error(units=TARGETS[config.targets])
    if config.keep == "last":
        score = score._replace(improved=lambda score, best: jnp.ones_like(score, bool))
    return fitting.make(model, config.fit, num_members=config.num_members, score=score)


def _network(config: Config, size: int) -> torsos.MLP:
    return torsos.MLP(
        (*config.hidden_layers, size), activation=ACTIVATIONS[config.activation],
        kernel_init=INITIALIZERS[config.init], bias_init=jax.nn.initializers.constant(config.bias))  # fmt: skip


def _check(config: Config) -> None:
    for value, known in ((config.activation, ACTIVATIONS), (config.init, INITIALIZERS), (config.targets, TARGETS),
                         (config.keep, ("best", "last"))):  # fmt: skip
        if value not in known:
            raise UsageError(f"gaussian_ensemble: unknown option {value!r}; choose one of {', '.join(known)}")
    if not config.lowest_log_variance < config.highest_log_variance:
        raise UsageError("gaussian_ensemble: lowest_log_variance must be below highest_log_variance")
    if config.decay and len(config.decay) != len(config.hidden_layers) + 1:
        raise UsageError(f"gaussian_ensemble: decay has {len(config.decay)} entries for {len(config.hidden_layers)} "
                         "hidden layers and the output; give one for each, or none")  # fmt: skip
