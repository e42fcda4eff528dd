"""Any explicit model and an optimizer to a learner: a bootstrap for each member, held-out scores, the best weights.

The protocol of MBPO's and MOPO's ensembles (arXiv:1906.08253, 2005.13239, as released), with two differences. A
member's minibatches are drawn uniformly, with replacement, from its bootstrap resample instead of by epochs of
permutations. And held-out scores are taken every `refresh_every` updates instead of after each epoch, before the
update that follows; the updates after the last evaluation are never judged, so evaluate often.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.models import coordinates
from offline_mbrl.types import Array, DynamicsModel, Learner, Metrics, PyTree, Transition, UsageError

BATCH = 256  # held-out transitions that are evaluated at a time


@dataclass(frozen=True)
class Config:
    """Our defaults for single densities and their ensembles; `gaussian_ensemble` has the published ones."""

    num_updates: int = 50_000
    batch_size: int = 256  # transitions per member and update
    bootstrap: bool = True  # each member sees its own resample of the training transitions; False: all of them
    bootstrap_seed: int = 0  # of the resamples, which are the same for all seeds of a run
    learning_rate: float = 1e-3  # Adam
    final_learning_rate: float = 0.02  # fraction of it after num_updates, reached linearly; 1: constant
    weight_decay: float = 1e-4  # on weight matrices
    decoupled: bool = True  # AdamW's decay; False: added to the gradient before Adam
    eps: float = 1e-8  # of Adam
    max_grad_norm: float = 10.0  # of each member's gradient; 0: not clipped
    num_elites: int = 0  # members that steps are sampled from, the best held-out ones; 0: all
    refresh_every: int = 500  # updates between evaluations on held-out transitions
    held_out_fraction: float = 0.1  # of the transitions, for `held_out_rule`
    max_held_out: int = 5_000  # held-out transitions, there and in an evaluation, at most; 0: all
    patience: int = 10  # evaluations without improvement after which `hooks` end a run; 0: never


class State(NamedTuple):
    """Everything that changes while learning."""

    params: PyTree  # of the model, as it is being trained
    opt_state: optax.OptState  # of params["network"]
    best: PyTree  # [E, ...] the members' parts of the network at their best evaluation
    best_score: Array  # [E] held-out score then; infinity before the first evaluation
    stale: Array  # [E] int32 evaluations since then
    count: Array  # [] int32 updates done


# --- scores on held-out transitions: lower is better ---


class Score(NamedTuple):
    """How members are judged."""

    evaluate: Callable[[DynamicsModel, PyTree, Transition], Array]  # (model, params, held out [M, ...]) -> [E]
    improved: Callable[[Array, Array], Array]  # (score [E], best so far [E]) -> [E] bool


def median_nll(threshold: float = 0.0) -> Score:
    """Median over transitions of the mean negative log-likelihood of an entry, raw units; improves by `threshold`."""

    def evaluate(model: DynamicsModel, params: PyTree, held_out: Transition) -> Array:
        counted = _counted(params, held_out)  # [M, D]
        nll = -jnp.sum(jnp.where(counted[:, None], log_probs(model, params, held_out), 0.0), axis=2)
        each, told = nll / jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1), jnp.any(counted, axis=1)
        median = jnp.nanmedian(jnp.where(told[:, None], each, jnp.nan), axis=0)
        broken = jnp.any(jnp.isnan(each), axis=0)  # a member that failed must not be judged by what is left of it
        return jnp.where(broken, jnp.nan, jnp.where(jnp.any(told), median, 0.0))

    return Score(evaluate, lambda score, best: score < best - threshold)


def squared_error(threshold: float = 0.01, *, units: coordinates.Units = coordinates.raw) -> Score:
    """Mean squared error of each member's mean, in these units; improves by the fraction `threshold` of the best.

    For densities whose entries are independent: the means are those beside a sampled outcome.
    """

    def evaluate(model: DynamicsModel, params: PyTree, held_out: Transition) -> Array:
        scale, counted = units(params["statistics"])[1], _counted(params, held_out)

        def one(of: tuple[Transition, Array]) -> Array:
            transition, counts = of
            key = jax.random.key(0)  # of a sample that nobody reads
            means, _ = model.step(params, transition.observation, transition.action, key)[1].members
            truth = jnp.append(transition.next_observation, transition.reward)
            return jnp.sum(jnp.where(counts, jnp.square((means - truth[None]) / scale[None]), 0.0), axis=1)

        errors = jax.lax.map(one, (held_out._replace(extras=()), counted), batch_size=BATCH)
        return jnp.sum(errors, axis=0) / jnp.maximum(jnp.sum(counted), 1)

    return Score(evaluate, lambda score, best: score < best * (1.0 - threshold))


def _counted(params: PyTree, held_out: Transition) -> Array:
    """`[M, D]` bool: the entries of held-out transitions that are judged, those that vary and are known."""
    return jax.vmap(coordinates.known_entries)(held_out._replace(extras=())) & params["statistics"]["varies"][None]


def log_probs(model: DynamicsModel, params: PyTree, transitions: Transition) -> Array:
    """`model.log_prob` of transitions `[M, ...]`, a batch at a time: `[M, E, D]`."""

    def one(of: Transition) -> Array:
        return model.log_prob(params, of.observation, of.action, of.next_observation, of.reward)

    return jax.lax.map(one, transitions._replace(extras=()), batch_size=BATCH)


# --- assembly ---


def make(model: DynamicsModel, config: Config, *, num_members: int = 1, score: Score = median_nll()) -> Learner:
    """The learner of a model's parameters.

    Args:
      model: an ensemble of `num_members`.
      config: of the fit.
      num_members: E.
      score: how members are judged on `dataset.held_out`.

    Returns:
      A learner whose batches are `[B, E, ...]`, and whose `policy_params` are the model's parameters: each member's
      best, the best `num_elites` of them as elites, and the statistics.

    Raises:
      UsageError: a setting is out of range; in `init`, there are no statistics of transitions, or the model has another
        number of members; in `refresh`, no transition is held out; in `step`, the batch is a stream's.
    """
    _check(config, num_members)
    transform, sample = optimizer(config), memory.transitions(config.batch_size)

    def draw(dataset: memory.Dataset, key: Array) -> Transition:
        dataset = jax.tree.map(jnp.asarray, dataset)  # host arrays cannot be indexed by traced rows
        shape = (config.batch_size, num_members)  # the batch axis first, so that devices can share it
        position = jax.random.randint(key, shape, 0, dataset.starts.shape[0])
        if config.bootstrap:
            position = resampled(position, dataset.starts.shape[0], config.bootstrap_seed)
        return sample.gather(dataset, dataset.starts[position])

    def init(key: Array, example: PyTree, statistics: PyTree, given: PyTree) -> State:
        del example, given
        params = _of(num_members, model.init(key, statistics))
        return State(
            params, transform.init(params["network"]), _members(params), jnp.full(num_members, jnp.inf),
            jnp.zeros(num_members, jnp.int32), jnp.zeros((), jnp.int32))  # fmt: skip

    def step(state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        if batch.reward.ndim != 2:
            raise UsageError("models are fitted from data in memory, not from a stream: load them whole")
        batch = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), batch)
        network = state.params["network"]
        gradient, metrics = jax.grad(
            lambda network: model.loss(state.params | {"network": network}, batch, key), has_aux=True
        )(network)
        updates, opt_state = transform.update(gradient, state.opt_state, network)
        params = state.params | {"network": optax.apply_updates(network, updates)}
        return state._replace(params=params, opt_state=opt_state, count=state.count + 1), metrics

    def refresh(state: State, dataset: memory.Dataset, key: Array) -> State:
        del key  # the same held-out transitions each time
        now = score.evaluate(model, state.params, held_out(dataset, config.max_held_out))
        improved = score.improved(now, state.best_score) & (state.count > 0)  # nothing has been learned at first
        best = jax.tree.map(
            lambda new, old: jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            _members(state.params), state.best)  # fmt: skip
        stale = jnp.where(improved | (state.count == 0), 0, state.stale + 1)
        return state._replace(best=best, best_score=jnp.where(improved, now, state.best_score), stale=stale)

    return Learner(
        sample=draw, init=init, step=step, policy=None, refresh=refresh, refresh_every=config.refresh_every,
        policy_params=lambda state: best_params(state, config.num_elites))  # fmt: skip


def best_params(state: State, num_elites: int = 0) -> PyTree:
    """Parameters of the model with each member at its best; a member that was never evaluated is taken as it is."""
    known = jnp.isfinite(state.best_score)
    chosen = jax.tree.map(
        lambda best, now: jnp.where(known.reshape(-1, *[1] * (now.ndim - 1)), best, now),
        state.best, _members(state.params))  # fmt: skip
    order = jnp.argsort(state.best_score)[: num_elites or None]
    return state.params | {"network": state.params["network"] | chosen, "elites": order.astype(jnp.int32)}


def _of(num_members: int, params: PyTree) -> PyTree:
    if (found := params["elites"].shape[0]) != num_members:
        raise UsageError(f"fitting: num_members is {num_members}, but the model has {found}: give the number it was "
                         "made with")  # fmt: skip
    return params


def _members(params: PyTree) -> PyTree:
    """What belongs to single members `[E, ...]`: learned bounds that they share are no part of a snapshot."""
    return {name: part for name, part in params["network"].items() if name != "shared"}


def resampled(position: Array, size: int, seed: int) -> Array:
    """Positions in the members' bootstrap resamples as positions in what was resampled.

    Member e's resample is `size` draws with replacement, made once: its entry j is a function of (seed, e, j), so that
    nothing of size `[E, size]` is kept.

    Args:
      position: `[..., E]` in `[0, size)`.
      size: of the data, and of each resample.
      seed: of the resamples.
    """
    keys = jax.vmap(lambda e: jax.random.fold_in(jax.random.key(seed), e))(jnp.arange(position.shape[-1]))
    entry = lambda key, j: jax.random.randint(jax.random.fold_in(key, j), (), 0, size)  # noqa: E731
    flat = jax.vmap(jax.vmap(entry), (None, 0))(keys, position.reshape(-1, position.shape[-1]))
    return flat.reshape(position.shape)


def held_out(dataset: memory.Dataset, most: int) -> Transition:
    """At most `most` held-out transitions of a dataset, evenly spaced; 0: all.

    Raises:
      UsageError: none is held out.
    """
    if isinstance(dataset.held_out, tuple):
        raise UsageError("fitting a model needs held-out transitions, but `dataset.held_out` is empty: "
                         "split first with data.splits.hold_out(dataset)")  # fmt: skip
    rows = jnp.asarray(dataset.held_out)
    rows = rows[:: -(-rows.shape[0] // most)] if most else rows
    return memory.transitions(1).gather(jax.tree.map(jnp.asarray, dataset), rows)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a clip for each member, weight decay on matrices, and a linear schedule."""
    rate: Any = config.learning_rate
    if config.final_learning_rate != 1.0:
        rate = optax.linear_schedule(rate, rate * config.final_learning_rate, config.num_updates)
    decay = optax.add_decayed_weights(config.weight_decay, matrices) if config.weight_decay else optax.identity()
    clip = clip_members(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    adam = optax.scale_by_adam(eps=config.eps)
    parts = (adam, decay) if config.decoupled else (decay, adam)
    return optax.chain(clip, *parts, optax.scale_by_learning_rate(rate))


def matrices(network: PyTree) -> PyTree:
    """True on weight matrices of members `[E, in, out]`, false on biases and on what members share."""
    shared = jax.tree.map(lambda _: False, network.get("shared", {}))
    return jax.tree.map(lambda leaf: leaf.ndim > 2, network) | {"shared": shared}


def clip_members(max_norm: float) -> optax.GradientTransformation:
    """Clips the norm of each member's gradient, so that no member's update depends on another; shared ones are left."""

    def clip(gradient: PyTree, params: PyTree) -> PyTree:
        del params
        own = {name: part for name, part in gradient.items() if name != "shared"}
        squares = [jnp.sum(jnp.square(leaf).reshape(leaf.shape[0], -1), axis=1) for leaf in jax.tree.leaves(own)]
        factor = jnp.minimum(1.0, max_norm / jnp.maximum(jnp.sqrt(sum(squares)), 1e-12))
        return gradient | jax.tree.map(lambda leaf: leaf * factor.reshape(-1, *[1] * (leaf.ndim - 1)), own)

    return optax.stateless(clip)


def held_out_rule(config: Config) -> dict[str, Any]:
    """What to give `splits.hold_out` so that as many transitions are held out as the config says."""
    return {"fraction": config.held_out_fraction, "most": config.max_held_out or None}


def hooks(config: Config) -> tuple[Callable[[Any], str | None], ...]:
    """What to give `fit` as `hooks` so that it stops as the config says: `stop_when_stale`, or nothing.

    They are asked after each block, so at least once after each evaluation.
    """
    return (stop_when_stale(config.patience),) if config.patience else ()


def stop_when_stale(patience: int) -> Callable[[Any], str | None]:
    """A hook of `fit`: ends a run in which no member of any living seed has improved for `patience` evaluations."""

    def hook(progress: Any) -> str | None:
        stale = jnp.min(progress.state.learner.stale, axis=-1)  # of each seed's most recent improvement
        ended = (stale >= patience) | ~progress.state.alive
        return f"no held-out score improved in {patience} evaluations" if bool(jnp.all(ended)) else None

    return hook


def _check(config: Config, num_members: int) -> None:
    if not 0 <= config.num_elites <= num_members:
        raise UsageError(f"fitting: num_elites {config.num_elites} must lie between 0 and num_members {num_members}")
    if min(config.batch_size, config.refresh_every, config.num_updates) < 1:
        raise UsageError("fitting: batch_size, refresh_every and num_updates must be at least 1")
    if min(config.max_held_out, config.patience) < 0:
        raise UsageError("fitting: max_held_out and patience must be at least 0, which means all and never")
