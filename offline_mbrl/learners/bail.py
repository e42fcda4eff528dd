"""BAIL (arXiv:1910.12179): cloning of the actions whose returns come close to an upper envelope.

Stage one fits an envelope V(s) above the returns of the data; the rows closest below it are kept,
and the last stage clones their actions.

Departures: the envelope's loss is a multiple of the expectile loss, which it equals. Returns of any
truncated episode are continued from the earlier state closest to its last one, where the release
asks for 1,000 steps; a terminated one never is. Where returns are negative rows are kept by the
difference to the envelope, since the release's ratio orders them wrongly there. Seeds share the
kept rows, chosen by the mean of their envelopes. Neither early stopping (the release's stored
weights follow training, so that it stops nothing) nor progressive BAIL are offered; last layers
start as all others.

On data of a noisy controller it stays below the optimum: the noise has a part in the returns by
which actions are chosen, and none of them is combined with another's.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory, monte_carlo
from offline_mbrl.learners import bc, td3_bc
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts import preprocessing
from offline_mbrl.settings import above, at_least, at_most, between, sizes
from offline_mbrl.targets.expectile import expectile_loss
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    PyTree,
    Stage,
    Transition,
    UsageError,
)

RETURN = "return"  # the extra that holds the return of a row
CHUNK = 4_096  # rows that the envelope is evaluated at together


@dataclass(frozen=True)
class EnvelopeConfig:
    """The released launch script; 50 epochs of 800,000 rows."""

    num_updates: Annotated[int, at_least(1)] = 50_000
    batch_size: Annotated[int, at_least(1)] = 800  # transitions per update
    coef: Annotated[float, above(0)] = 1_000.0  # K: weight of returns above the envelope
    layers: Annotated[tuple[int, ...], sizes()] = (128, 128)  # ReLU
    learning_rate: Annotated[float, at_least(0)] = 3e-3  # Adam
    weight_decay: Annotated[float, at_least(0)] = 0.02  # added to the gradient


@dataclass(frozen=True)
class Config:
    """The released launch script."""

    num_updates: Annotated[int, at_least(1)] = 200_000
    batch_size: Annotated[int, at_least(1)] = 1_000  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    fraction: Annotated[float, above(0), at_most(1)] = 0.25  # of the rows that are cloned
    # How close a row is: return / envelope, or return - envelope. Automatic: the ratio where no
    # return is negative.
    selection: Literal["automatic", "ratio", "difference"] = "automatic"
    actor_layers: Annotated[tuple[int, ...], sizes()] = (400, 300)  # ReLU
    learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)


# --- the equations ---


def envelope_loss(value: Array, total: Array, *, coef: float) -> Array:
    """`(V - G)^2` where V >= G, else `coef (G - V)^2`, `[]`.

    It is `1 + coef` times the expectile loss of the expectile `coef / (1 + coef)`.

    Args:
      value: `[]` of the envelope.
      total: `[]` return G.
      coef: K.

    Source: arXiv:1910.12179, its penalty loss of an upper envelope.
    """
    chex.assert_rank([value, total], 0)
    return (1.0 + coef) * expectile_loss(total - value, coef / (1.0 + coef))


def positive(value: Any) -> Any:
    """V, or `exp(V - 1)` where V is below 1; elementwise. Source: the released code."""
    return np.where(value < 1.0, np.exp(np.minimum(value, 1.0) - 1.0), value)


def ratio(total: Any, value: Any) -> Any:
    """`G / V` with a positive V, elementwise; in order where no G is negative."""
    return total / positive(value)


def difference(total: Any, value: Any) -> Any:
    """`G - V`, elementwise."""
    return total - value


def best_rows(
    total: np.ndarray, value: np.ndarray, *, fraction: float, selection: str
) -> np.ndarray:
    """The rows whose returns are closest to the envelope, `[round(fraction N)]` in their order.

    Args:
      total: `[N]` returns.
      value: `[N]` of the envelope.
      fraction: of the rows; at least one is kept.
      selection: as in `Config`.

    Raises:
      UsageError: the ratio is asked for although returns are negative.
    """
    is_signed = float(np.min(total)) < 0.0
    if selection == "ratio" and is_signed:
        raise UsageError(
            "bail: selection ratio needs returns of at least 0 (a negative one looks better the "
            f"higher its envelope is), but the least is {np.min(total):g}: use difference"
        )
    measures = {"ratio": ratio, "difference": difference}
    measures["automatic"] = difference if is_signed else ratio
    closeness = measures[selection](total, value)
    count = max(1, round(fraction * len(total)))
    return np.sort(np.argsort(-closeness, kind="stable")[:count])


# --- the envelope ---


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The fit of the envelope, which hands on the rows to clone.

    Raises:
      UsageError: observations are stacked frames, or a setting makes no learner.
    """
    settings.require_valid(config, "bail", spec)
    if spec.frame_stack != 1:
        raise UsageError("bail: returns are not fitted to stacked frames: use one record")
    envelope = config.envelope
    network = parts.value(spec, envelope.layers)

    def init(key: Key, observation: Observation) -> Params:
        del observation  # its size is the spec's
        return network.init(key)

    def loss(params: Params, transition: Transition) -> Array:
        value = network.apply(params, transition.observation)
        return envelope_loss(value, transition.extras[RETURN], coef=envelope.coef)

    def with_returns(dataset: PyTree) -> memory.Dataset:
        _require_in_memory(dataset)
        returns = monte_carlo.row_returns(dataset, config.gamma).astype(np.float32)
        return dataset._replace(extras={**(dataset.extras or {}), RETURN: returns})

    def select(dataset: memory.Dataset, params: Params, key: Key) -> memory.Dataset:
        del key  # deterministic
        rows = np.asarray(dataset.starts)
        value = _mean_envelope(network, params, _rows(dataset.observation, rows))
        kept = best_rows(
            monte_carlo.row_returns(dataset, config.gamma)[rows],
            value,
            fraction=config.fraction,
            selection=config.selection,
        )
        return dataset._replace(starts=rows[kept])

    optimizer = optax.chain(
        optax.add_decayed_weights(envelope.weight_decay), optax.adam(envelope.learning_rate)
    )
    fit = bc.Density(init=init, distribution=network.apply, loss=loss, optimizer=optimizer)
    learner = _measured_with_returns(bc.learner(fit, spec, envelope.batch_size))
    stage = Stage(
        learner=learner._replace(policy=None),
        num_updates=envelope.num_updates,
        prepare=with_returns,
        hand_on_dataset=select,
    )
    return {"envelope": stage}


def _mean_envelope(network: parts.Network, params: Params, observations: Observation) -> np.ndarray:
    """`[N]`, over the seeds of `params`."""

    def value(observation: Observation) -> Array:
        return jnp.mean(jax.vmap(network.apply, (0, None))(params, observation))

    return np.asarray(jax.lax.map(value, observations, batch_size=CHUNK), np.float64)


def _rows(observation: Observation, rows: np.ndarray) -> Observation:
    return jax.tree.map(lambda column: jnp.asarray(column[rows]), observation)


def _require_in_memory(dataset: PyTree) -> None:
    if not isinstance(dataset, memory.Dataset) or not isinstance(
        dataset.reward, np.ndarray | jax.Array
    ):
        raise UsageError(
            "bail computes the returns of all rows and needs the dataset in memory: load it "
            "(`--stream never`)"
        )


def _measured_with_returns(learner: Learner) -> Learner:
    """The learner, of which nothing is measured on held-out data that have no returns."""
    losses = learner.validate
    assert losses is not None

    def validate(state: PyTree, context: Context, batch: Transition, key: Key) -> Metrics:
        return losses(state, context, batch, key) if RETURN in (batch.extras or {}) else {}

    return learner._replace(validate=validate)


# --- cloning ---


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner that clones what is kept. Its policy is deterministic and has no density.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "bail", spec)
    actor = parts.deterministic_actor(spec, "bail", config.actor_layers)

    def init(key: Key, observation: Observation) -> Params:
        del observation  # its size is the spec's
        return actor.init(key)

    def loss(params: Params, transition: Transition) -> Array:
        action = actor.apply(params, transition.observation).mode()
        return td3_bc.mean_distance(action, transition.action)

    fit = bc.Density(
        init=init, distribution=actor.apply, loss=loss, optimizer=optax.adam(config.learning_rate)
    )
    return preprocessing.without_density(bc.learner(fit, spec, config.batch_size))
