"""Probabilistic ensembles as MBPO, MOPO and their kin train them.

What their codes do differently are options. A member predicts a mean and a log variance per entry
of (change of the observation, reward); the soft bounds of the log variance are learned and shared
by all members (PETS, arXiv:1805.12114, appendix A.1; MBPO, arXiv:1906.08253; MOPO,
arXiv:2005.13239). The reward is the last entry (MOPO's code has it first). Minibatches: see
`fitting`.

What `PRESETS` do not take over: mbrl-lib and unifloral decay biases too; mbrl-lib takes the
snapshot of all members when one has improved; CBOP's two networks have losses of their own, here
the reward is one of D entries of a mean (which Adam undoes but for the weight of the bounds);
unifloral standardizes no inputs, shows all members the same batches and stops after 400 epochs;
MOReL scales by the mean absolute deviation instead of the standard one, draws initial biases too,
stops after 25 epochs, holds nothing out, and is given the reward. Where a code stops early, its
patience is in epochs, as here; its evaluations, one an epoch, are here one every
`fit.refresh_every` updates.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl.models import explicit, fitting, scores
from offline_mbrl.models.densities import coordinates
from offline_mbrl.models.densities.density import Density, gaussian_log_prob, soft_bounds
from offline_mbrl.networks import torsos
from offline_mbrl.settings import at_least, require_bounds, sizes
from offline_mbrl.types import (
    Array,
    DynamicsModel,
    EnvironmentSpec,
    Key,
    Learner,
    Params,
    Stage,
    Termination,
    UsageError,
)

FIT = fitting.Config(
    final_learning_rate=1.0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    num_elites=5,
    max_held_out=1_000,
    held_out_fraction=0.2,
    patience=6,  # MOPO's code stops when its counter exceeds 5
    patience_unit="epochs",
)


@dataclass(frozen=True)
class GaussianEnsembleConfig:
    """The released MOPO; what others do differently is in `PRESETS`."""

    num_members: Annotated[int, at_least(1)] = 7
    hidden_layers: Annotated[tuple[int, ...], sizes()] = (200, 200, 200, 200)
    activation: Literal["swish", "relu"] = "swish"
    # See networks.torsos; lecun: flax's own.
    init: Literal["half_normal", "uniform", "lecun"] = "half_normal"
    bias: float = 0.0  # all biases at first
    # Of each layer, the output's too: decay / 2 * sum W^2; (): none.
    decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    lowest_log_variance: float = -10.0  # where the bounds start
    highest_log_variance: float = 0.5
    learned_bounds: bool = True
    bounds_coef: float = 0.01  # weight of sum(highest) - sum(lowest) in the loss
    separate_reward: bool = False  # the reward has its own network of the same shape
    # Trained on the squared error; samples have no noise, the density deviation 1.
    deterministic: bool = False
    targets: Literal["raw", "standardized"] = "raw"
    keep: Literal["best", "last"] = "best"  # evaluation whose weights each member is handed on with
    fit: fitting.Config = field(default_factory=lambda: FIT)


Config = GaussianEnsembleConfig

PRESETS: dict[str, dict[str, Any]] = {
    "mopo": {},
    # yihaosun1124/OfflineRL-Kit
    "offlinerl_kit": {"fit": replace(FIT, patience=5)},
    # facebookresearch/mbrl-lib, GaussianMLP: fixed bounds, decay by the optimizer
    "mbrl_lib": {
        "decay": (),
        "learned_bounds": False,
        "fit": replace(FIT, weight_decay=1e-5, decoupled=False, patience=5, max_held_out=0),
    },
    # The published command of Jeong et al. (ICLR 2023). Its resamples are drawn anew each epoch, so
    # that every member sees all data.
    "cbop": {
        "num_members": 30,
        "activation": "relu",
        "init": "uniform",
        "bias": 0.1,
        "decay": (),
        "separate_reward": True,
        "targets": "standardized",
        "fit": replace(
            FIT, batch_size=1_024, bootstrap=False, num_elites=20, max_held_out=10_000, patience=5
        ),
    },
    # EmptyJackson/unifloral, algorithms/dynamics.py
    "unifloral": {
        "activation": "relu",
        "init": "lecun",
        "decay": (),
        "keep": "last",
        "fit": replace(
            FIT, weight_decay=2.5e-5, eps=1e-5, bootstrap=False, max_held_out=0, patience=0
        ),
    },
    # aravindr93/mjrl, projects/morel, its D4RL configuration
    "morel": {
        "num_members": 4,
        "hidden_layers": (512, 512),
        "activation": "relu",
        "init": "uniform",
        "decay": (),
        "deterministic": True,
        "separate_reward": True,
        "targets": "standardized",
        "keep": "last",
        "fit": replace(FIT, bootstrap=False, num_elites=0, patience=0),
    },
}


def _lecun(fan_in: int) -> nn.initializers.Initializer:
    del fan_in  # flax reads it from the shape
    return nn.initializers.lecun_normal()


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"swish": jax.nn.silu, "relu": jax.nn.relu}
INITIALIZERS: Mapping[str, Callable[[int], nn.initializers.Initializer]] = {
    "half_normal": torsos.half_fan_in_normal,
    "uniform": torsos.fan_in_uniform,
    "lecun": _lecun,
}
TARGETS: Mapping[str, coordinates.Units] = {
    "raw": coordinates.raw,
    "standardized": coordinates.standardized,
}


# --- density ---


def density(config: GaussianEnsembleConfig, state_size: int, action_size: int) -> Density:
    """One member's density of D = state_size + 1 entries.

    Args:
      config: of the ensemble.
      state_size: n, entries of the observation.
      action_size: entries of the action.

    Raises:
      UsageError: a setting is out of its bounds, the bounds of the log variance leave no room, or
        `decay` has another number of layers.
    """
    _check(config)
    size = state_size + 1
    parts = {"state": state_size, "reward": 1} if config.separate_reward else {"all": size}
    networks = {name: _network(config, part_size) for name, part_size in parts.items()}
    bounds = {
        "lowest": jnp.full(size, config.lowest_log_variance),
        "highest": jnp.full(size, config.highest_log_variance),
    }
    heads = functools.partial(_heads, config, networks, bounds)

    def init(key: Key) -> Params:
        x = jnp.zeros(state_size + action_size)
        keys = jax.random.split(key, len(networks))
        return {
            name: torsos.init(network, keys[i], x)
            for i, (name, network) in enumerate(networks.items())
        }

    def shared() -> Params:
        return bounds if config.learned_bounds and not config.deterministic else {}

    def mode(params: Params, shared: Params, x: Array) -> Array:
        return heads(params, shared, x)[0]

    def log_prob(params: Params, shared: Params, x: Array, y: Array) -> Array:
        mean, log_variance = heads(params, shared, x)
        return gaussian_log_prob(y, mean, 0.5 * log_variance)

    def loss(params: Params, shared: Params, x: Array, y: Array, weight: Array, key: Key) -> Array:
        del key  # deterministic
        return jnp.mean(weight * scaled_nll(y, *heads(params, shared, x)))

    def moments(params: Params, shared: Params, x: Array, y: Array) -> tuple[Array, Array]:
        del y  # no entry depends on another
        mean, log_variance = heads(params, shared, x)
        return mean, jnp.zeros_like(mean) if config.deterministic else jnp.exp(0.5 * log_variance)

    def sample(params: Params, shared: Params, x: Array, key: Key) -> Array:
        mean, std = moments(params, shared, x, x)
        return mean + std * jax.random.normal(key, mean.shape)

    return Density(
        init=init,
        shared=shared,
        loss=loss,
        penalty=functools.partial(_penalty, config),
        log_prob=log_prob,
        sample=sample,
        mode=mode,
        moments=moments,
    )


def _network(config: GaussianEnsembleConfig, size: int) -> torsos.MLP:
    """Means of `size` entries, and their raw log variances where there are any."""
    num_outputs = size if config.deterministic else 2 * size
    return torsos.MLP(
        (*config.hidden_layers, num_outputs),
        activation=ACTIVATIONS[config.activation],
        kernel_init=INITIALIZERS[config.init],
        bias_init=jax.nn.initializers.constant(config.bias),
    )


def _heads(
    config: GaussianEnsembleConfig,
    networks: Mapping[str, torsos.MLP],
    bounds: Params,
    params: Params,
    shared: Params,
    x: Array,
) -> tuple[Array, Array]:
    """Mean and log variance `[D]` of one member; `bounds` where none are learned."""
    num_heads = 1 if config.deterministic else 2
    outputs = [
        jnp.split(torsos.apply(network, params[name], x), num_heads)
        for name, network in networks.items()
    ]
    mean, *raw = (jnp.concatenate(part) for part in zip(*outputs, strict=True))
    if config.deterministic:
        return mean, jnp.zeros_like(mean)
    limits = shared or bounds
    return mean, soft_bounds(raw[0], limits["lowest"], limits["highest"])


def _penalty(config: GaussianEnsembleConfig, params: Params, shared: Params) -> Array:
    """The room between learned bounds, and the decay of all members' weights."""
    room = jnp.sum(shared["highest"] - shared["lowest"]) if shared else jnp.zeros(())
    decay = sum((layer_decay(config.decay, part) for part in params.values()), 0.0)
    return config.bounds_coef * room + decay


def scaled_nll(y: Array, mean: Array, log_variance: Array) -> Array:
    """`(mean - y)^2 exp(-log_variance) + log_variance`.

    Twice the negative log-likelihood without its constant.
    """
    return jnp.square(mean - y) * jnp.exp(-log_variance) + log_variance


def layer_decay(decay: tuple[float, ...], params: Params) -> Array:
    """`sum_l decay_l / 2 * sum W_l^2` `[]` over the members' layers; biases are left alone."""
    squares = [jnp.sum(jnp.square(params[f"layer_{i}"]["kernel"])) for i in range(len(decay))]
    penalties = (rate * square for rate, square in zip(decay, squares, strict=True))
    return 0.5 * sum(penalties, jnp.zeros(()))


def units(config: GaussianEnsembleConfig) -> coordinates.Units:
    """The units of the targets."""
    return TARGETS[config.targets]


def score(config: GaussianEnsembleConfig) -> scores.Score:
    """Members are judged by the squared error of their means on held-out targets."""
    error = scores.squared_error(units=units(config))
    return scores.always_improved(error) if config.keep == "last" else error


# --- assembly ---


def make(
    config: GaussianEnsembleConfig,
    spec: EnvironmentSpec,
    *,
    draw: explicit.Draw = explicit.SAMPLE,
    terminate: Termination | None = None,
    continuation: explicit.Continuation | None = None,
) -> DynamicsModel:
    """The ensemble as a model; see `explicit.make`.

    Raises:
      UsageError: an option is unknown or does not fit the others, or the spec is not one of
        vectors.
    """
    return explicit.make(
        density(config, *explicit.sizes(spec)),
        spec,
        num_members=config.num_members,
        units=units(config),
        draw=draw,
        terminate=terminate,
        continuation=continuation,
    )


def learner(config: GaussianEnsembleConfig, model: DynamicsModel) -> Learner:
    """The fit of that model, judged by `score`; `stage` also splits the data and stops early."""
    return fitting.make(model, config.fit, num_members=config.num_members, score=score(config))


def stage(config: GaussianEnsembleConfig, spec: EnvironmentSpec, **options: Any) -> Stage:
    """The fit of the ensemble as a stage of an algorithm, which hands on `ModelParams`.

    Args:
      config: of the ensemble and its fit.
      spec: of the data.
      **options: further arguments of `make`.
    """
    return fitting.stage(
        make(config, spec, **options),
        config.fit,
        num_members=config.num_members,
        score=score(config),
    )


def _check(config: GaussianEnsembleConfig) -> None:
    try:
        require_bounds(config)
    except UsageError as error:
        raise UsageError(f"gaussian_ensemble: {error}") from None
    if not config.lowest_log_variance < config.highest_log_variance:
        raise UsageError(
            "gaussian_ensemble: lowest_log_variance must be below highest_log_variance"
        )
    if config.decay and len(config.decay) != len(config.hidden_layers) + 1:
        raise UsageError(
            f"gaussian_ensemble: decay has {len(config.decay)} entries for "
            f"{len(config.hidden_layers)} hidden layers and the output; give one for each, or none"
        )
