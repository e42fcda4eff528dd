"""Any explicit model and an optimizer to a learner, and to a stage of an algorithm.

Each member sees a bootstrap resample, is judged on held-out transitions, and keeps its best
weights.

The protocol of MBPO's and MOPO's ensembles (arXiv:1906.08253, 2005.13239, as released), with two
differences. A member's minibatches are drawn uniformly, with replacement, from its bootstrap
resample instead of by epochs of permutations. And held-out scores are taken every `refresh_every`
updates instead of after each epoch, before the update that follows; the updates after the last
evaluation are never judged, so evaluate often.

A seed whose patience is exhausted is done: neither its weights nor its scores change any more. So a
seed beside others ends as the same seed alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.models import explicit, members
from offline_mbrl.models.scores import Score, median_nll
from offline_mbrl.settings import above, at_least, between, require_bounds
from offline_mbrl.types import (
    Array,
    Context,
    DynamicsModel,
    Key,
    Learner,
    Metrics,
    ModelParams,
    Params,
    PyTree,
    Stage,
    Transition,
    UsageError,
)


@dataclass(frozen=True)
class Config:
    """Our defaults for single densities and their ensembles.

    `gaussian_ensemble` has the published ones.
    """

    num_updates: Annotated[int, at_least(1)] = 50_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per member and update
    bootstrap: bool = True  # each member sees its own resample of the training transitions
    bootstrap_seed: int = 0  # of the resamples, which are the same for all seeds of a run
    learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    # Fraction of it after num_updates, reached linearly; 1: constant.
    final_learning_rate: Annotated[float, between(0, 1)] = 0.02
    weight_decay: Annotated[float, at_least(0)] = 1e-4  # on weight matrices
    decoupled: bool = True  # AdamW's decay; False: added to the gradient before Adam
    eps: Annotated[float, above(0)] = 1e-8  # of Adam
    max_grad_norm: Annotated[float, at_least(0)] = 10.0  # of each member's gradient; 0: not clipped
    # Members that steps are sampled from, the best held-out ones; 0: all.
    num_elites: Annotated[int, at_least(0)] = 0
    refresh_every: Annotated[int, at_least(1)] = 500  # updates between evaluations
    held_out_fraction: Annotated[float, between(0, 1)] = 0.1  # of the transitions
    # Held-out transitions, of the split and of an evaluation, at most; 0: all.
    max_held_out: Annotated[int, at_least(0)] = 5_000
    # Without improvement of any member for so long, a seed is done; 0: never. An epoch is as many
    # updates as make one pass over the training transitions.
    patience: Annotated[int, at_least(0)] = 10
    patience_unit: Literal["evaluations", "epochs"] = "evaluations"


class State(NamedTuple):
    """Everything that changes while learning."""

    params: Params  # the network of `ModelParams`, as it is being trained
    opt_state: optax.OptState
    best: Params  # [E, ...] the members' parts of the network at their best evaluation
    best_score: Array  # [E] held-out score then; infinity before the first evaluation
    stale: Array  # [E] int32 evaluations since then
    done: Array  # [] bool, whether patience is exhausted
    count: Array  # [] int32 updates done


# --- assembly ---


def make(
    model: DynamicsModel,
    config: Config,
    *,
    num_members: int = 1,
    score: Score = median_nll(),
) -> Learner:
    """The learner of a model's parameters.

    Args:
      model: an ensemble of `num_members`.
      config: of the fit.
      num_members: E.
      score: how members are judged on `dataset.held_out`.

    Returns:
      A learner whose batches are `[B, E, ...]`, and whose `policy_params` are `ModelParams`: each
      member's best, the best `num_elites` of them as elites, and the statistics.

    Raises:
      UsageError: a setting is out of range; in `init`, there are no statistics of transitions, or
        the model has another number of members; in `refresh`, no transition is held out; in `step`,
        the batch is a stream's.
    """
    _check(config, num_members)
    transform = optimizer(config)

    def init(key: Key, example: PyTree, context: Context) -> State:
        del example
        params = model.init(key, context.statistics)
        _require_members(params, num_members)
        return State(
            params=params.network,
            opt_state=transform.init(params.network),
            best=members.own_parts(params.network),
            best_score=jnp.full(num_members, jnp.inf),
            stale=jnp.zeros(num_members, jnp.int32),
            done=jnp.zeros((), bool),
            count=jnp.zeros((), jnp.int32),
        )

    def step(state: State, context: Context, batch: Transition, key: Key) -> tuple[State, Metrics]:
        def loss(network: Params) -> tuple[Array, Metrics]:
            params = current_params(state, context)._replace(network=network)
            return model.loss(params, _by_member(batch), key)

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        after = state._replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            count=state.count + 1,
        )
        return (_unless_done(state, after) if config.patience else after), metrics

    def validate(state: State, context: Context, batch: Transition, key: Key) -> Metrics:
        _, metrics = model.loss(current_params(state, context), _by_member(batch), key)
        return metrics

    return Learner(
        sample=functools.partial(_sample, config, num_members),
        init=init,
        step=step,
        policy=None,
        policy_params=functools.partial(best_params, num_elites=config.num_elites),
        validate=validate,
        refresh=functools.partial(_refresh, model, config, score),
        refresh_every=config.refresh_every,
    )


def stage(
    model: DynamicsModel,
    config: Config,
    *,
    num_members: int = 1,
    score: Score = median_nll(),
) -> Stage:
    """The fit as a stage of an algorithm, which hands on `ModelParams`.

    It holds out transitions as the config says, is normalized by the statistics of those that are
    left, and ends when every living seed is done. Arguments are those of `make`.

    Raises:
      UsageError: as `make`.
    """
    return Stage(
        learner=make(model, config, num_members=num_members, score=score),
        num_updates=config.num_updates,
        prepare=functools.partial(
            splits.hold_out,
            fraction=config.held_out_fraction,
            most=config.max_held_out or None,
        ),
        statistics=training_statistics,
        hooks=hooks(config),
    )


def training_statistics(dataset: memory.Dataset) -> normalize.Statistics:
    """Statistics of the training transitions alone, none of them held out.

    Raises:
      UsageError: as `normalize.transition_statistics`.
    """
    transitions = normalize.transition_statistics(dataset)
    return normalize.Statistics(
        mean=transitions.observation_mean,
        std=transitions.observation_std,
        transitions=transitions,
    )


# --- parameters ---


def current_params(state: State, context: Context) -> ModelParams:
    """Parameters of the model as it is being trained, every member an elite."""
    return ModelParams(
        network=state.params,
        statistics=explicit.require_statistics(context.statistics),
        elites=jnp.arange(state.best_score.shape[0], dtype=jnp.int32),
    )


def best_params(state: State, context: Context, *, num_elites: int = 0) -> ModelParams:
    """Parameters of the model with each member at its best evaluation.

    A member that was never evaluated is taken as it is.

    Args:
      state: of one seed.
      context: the fit's.
      num_elites: the best members that steps are sampled from; 0: all.
    """
    evaluated = jnp.isfinite(state.best_score)
    chosen = members.select(evaluated, state.best, members.own_parts(state.params))
    order = jnp.argsort(state.best_score)[: num_elites or None]
    return current_params(state, context)._replace(
        network=state.params | chosen, elites=order.astype(jnp.int32)
    )


def _require_members(params: ModelParams, num_members: int) -> None:
    size = params.elites.shape[0]
    if size != num_members:
        raise UsageError(
            f"fitting: num_members is {num_members}, but the model has {size}: give the number it "
            "was made with"
        )


# --- batches ---


def _sample(
    config: Config, num_members: int, dataset: memory.Dataset, cache: PyTree, key: Key
) -> Transition:
    """`[B, E, ...]`: the batch axis first, so that devices can share it."""
    del cache
    dataset = jax.tree.map(jnp.asarray, dataset)  # host arrays cannot be indexed by traced rows
    size = dataset.starts.shape[0]
    position = jax.random.randint(key, (config.batch_size, num_members), 0, size)
    if config.bootstrap:
        position = members.resampled(position, size, config.bootstrap_seed)
    return memory.Transitions(config.batch_size).gather(dataset, dataset.starts[position])


def _by_member(batch: Transition) -> Transition:
    """`[B, E, ...]` to `[E, B, ...]`."""
    if batch.reward.ndim != 2:
        raise UsageError(
            "models are fitted from data in memory, not from a stream: load them whole"
        )
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), batch)


def held_out(dataset: memory.Dataset, most: int) -> Transition:
    """At most `most` held-out transitions of a dataset, evenly spaced; 0: all.

    Raises:
      UsageError: none is held out.
    """
    if isinstance(dataset.held_out, tuple):
        raise UsageError(
            "fitting a model needs held-out transitions, but `dataset.held_out` is empty: split "
            "first with data.splits.hold_out(dataset)"
        )
    rows = jnp.asarray(dataset.held_out)
    if most:
        rows = rows[:: -(-rows.shape[0] // most)]
    return memory.Transitions(1).gather(jax.tree.map(jnp.asarray, dataset), rows)


# --- evaluations and the end ---


def _refresh(
    model: DynamicsModel,
    config: Config,
    score: Score,
    state: State,
    context: Context,
    dataset: memory.Dataset,
    cache: PyTree,
    update: Array,
    key: Key,
) -> tuple[State, PyTree, Metrics]:
    """Judges the members on the same held-out transitions each time."""
    del update, key
    transitions = held_out(dataset, config.max_held_out)
    scores = score.evaluate(model, current_params(state, context), transitions)
    has_learned = state.count > 0  # nothing has been learned at first
    improved = score.improved(scores, state.best_score) & has_learned
    best = members.select(improved, members.own_parts(state.params), state.best)
    stale = jnp.where(improved | ~has_learned, 0, state.stale + 1)
    after = state._replace(
        best=best,
        best_score=jnp.where(improved, scores, state.best_score),
        stale=stale,
        done=_is_exhausted(config, jnp.min(stale), dataset.starts.shape[0]),
    )
    metrics = {
        "held_out/score_mean": jnp.mean(scores),
        "held_out/score_min": jnp.min(scores),
        "held_out/evaluations_without_improvement": jnp.min(stale),
    }
    return (_unless_done(state, after) if config.patience else after), cache, metrics


def _is_exhausted(config: Config, stale: Array, num_transitions: int) -> Array:
    """Whether `stale` evaluations without improvement of any member exhaust patience, `[]`."""
    if not config.patience:
        return jnp.zeros((), bool)
    evaluations = config.patience
    if config.patience_unit == "epochs":
        updates = config.patience * num_transitions / config.batch_size
        evaluations = updates / config.refresh_every
    return stale >= jnp.maximum(evaluations, 1)


def _unless_done(before: State, after: State) -> State:
    """`after`, or `before` where the seed is done."""
    return jax.tree.map(lambda old, new: jnp.where(before.done, old, new), before, after)


def hooks(config: Config) -> tuple[Callable[[Any], str | None], ...]:
    """Hooks by which `fit` stops as the config says: `stop_when_done`, or none.

    They are called after each block, so at least once after each evaluation.
    """
    if not config.patience:
        return ()
    return (stop_when_done(f"{config.patience} {config.patience_unit}"),)


def stop_when_done(patience: str) -> Callable[[Any], str | None]:
    """A hook of `fit`: ends a run whose living seeds are all done.

    Args:
      patience: for how long none of them has improved, for the reason.
    """

    def hook(progress: Any) -> str | None:
        alive = progress.state.alive
        if not bool(jnp.any(alive)) or not bool(jnp.all(progress.state.learner.done | ~alive)):
            return None
        return f"no held-out score improved in {patience}"

    return hook


# --- optimizer ---


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a clip for each member, weight decay on matrices, and a linear schedule."""
    rate: Any = config.learning_rate
    if config.final_learning_rate != 1.0:
        final = rate * config.final_learning_rate
        rate = optax.linear_schedule(rate, final, config.num_updates)
    decay = optax.identity()
    if config.weight_decay:
        decay = optax.add_decayed_weights(config.weight_decay, members.matrices)
    clip = (
        members.clip_gradients(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    )
    adam = optax.scale_by_adam(eps=config.eps)
    parts = (adam, decay) if config.decoupled else (decay, adam)
    return optax.chain(clip, *parts, optax.scale_by_learning_rate(rate))


def _check(config: Config, num_members: int) -> None:
    try:
        require_bounds(config)
    except UsageError as error:
        raise UsageError(f"fitting: {error}") from None
    if config.num_elites > num_members:
        raise UsageError(
            f"fitting: num_elites {config.num_elites} must lie between 0 and num_members "
            f"{num_members}"
        )
