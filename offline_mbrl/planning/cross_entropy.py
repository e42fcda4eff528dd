"""The cross-entropy method: sequences of actions from a normal that is refitted to the best.

`cem` is the planner of PETS (arXiv:1805.12114, as released): truncated normals whose deviation
shrinks at the bounds, the mean of the last iteration carried out. `icem` is its sample-efficient
relative (arXiv:2008.06389): noise that is correlated along time, fewer candidates in each
iteration, elites kept within and between steps, the best candidate carried out.

A sequence whose value is not finite never becomes an elite, whatever the sign of the others.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.planning import improve, shooting
from offline_mbrl.planning.shooting import Decision, Task
from offline_mbrl.types import Action, Actor, Array, Key, Observation, Params, UsageError

# (sequences [N, L, A], key) -> values [N]
Score = Callable[[Array, Key], Array]


class Normal(NamedTuple):
    """What sequences are drawn from, each entry on its own."""

    mean: Array  # [L, A]
    variance: Array  # [L, A]


# --- CEM as in PETS ---


def width(normal: Normal, low: float, high: float) -> Array:
    """Deviations `[L, A]` with which two of them fit between the mean and the nearer bound."""
    below = ((normal.mean - low) / 2.0) ** 2
    above = ((high - normal.mean) / 2.0) ** 2
    return jnp.sqrt(jnp.minimum(jnp.minimum(below, above), normal.variance))


def refitted(normal: Normal, actions: Action, weights: Array, inertia: float) -> Normal:
    """`inertia` of the old moments and the rest of the elites' own.

    Args:
      normal: from which the sequences were drawn.
      actions: `[N, L, A]`.
      weights: `[N]` of sum 1, equal for the elites and 0 for all others.
      inertia: share of the old moments.
    """
    mean = improve.average(weights, actions)
    variance = improve.average(weights, (actions - mean[None]) ** 2)
    return Normal(
        mean=inertia * normal.mean + (1.0 - inertia) * mean,
        variance=inertia * normal.variance + (1.0 - inertia) * variance,
    )


class Optimized(NamedTuple):
    """Where the iterations end."""

    normal: Normal
    is_usable: Array  # [] bool, whether any value was finite


def optimize(
    score: Score,
    mean: Array,
    key: Key,
    *,
    num_candidates: int,
    num_iterations: int = 5,
    elite_fraction: float = 0.1,
    inertia: float = 0.1,
    min_variance: float = 1e-3,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Optimized:
    """PETS's iterations, from any values.

    Args:
      score: values of sequences.
      mean: `[L, A]` to start from; the variance is that of a sixteenth of the squared range.
      key: consumed.
      num_candidates: N.
      num_iterations: at most; nothing changes once the largest variance is below `min_variance`.
      elite_fraction: of the candidates, rounded, at least one.
      inertia: share of the old moments in the new ones.
      min_variance: see above.
      bounds: of every entry.
    """
    low, high = bounds
    weigh = improve.best(num_elites(num_candidates, elite_fraction))

    def iterate(optimized: Optimized, key: Key) -> tuple[Optimized, None]:
        key_noise, key_score = jax.random.split(key)
        normal = optimized.normal
        noise = jax.random.truncated_normal(key_noise, -2.0, 2.0, (num_candidates, *mean.shape))
        actions = normal.mean[None] + width(normal, low, high)[None] * noise
        values = score(actions, key_score)
        is_usable = jnp.any(jnp.isfinite(values))
        moves = is_usable & (jnp.max(normal.variance) >= min_variance)
        after = refitted(normal, actions, weigh(values), inertia)
        moved = jax.tree.map(lambda new, old: jnp.where(moves, new, old), after, normal)
        return Optimized(normal=moved, is_usable=optimized.is_usable | is_usable), None

    variance = jnp.full_like(mean, (high - low) ** 2 / 16.0)
    before = Optimized(Normal(mean=mean, variance=variance), is_usable=jnp.array(False))
    return jax.lax.scan(iterate, before, jax.random.split(key, num_iterations))[0]


def num_elites(num_candidates: int, fraction: float) -> int:
    """A fraction of the candidates, rounded, at least one."""
    return max(round(fraction * num_candidates), 1)


def cem(
    task: Task,
    *,
    num_candidates: int = 400,
    num_iterations: int = 5,
    elite_fraction: float = 0.1,
    inertia: float = 0.1,
    min_variance: float = 1e-3,
    budget: int | None = None,
) -> Actor:
    """The planner of PETS; its carry is the plan `[L, A]`, shifted and filled with 0.

    Args:
      task: what is planned.
      num_candidates: N of each iteration.
      num_iterations: see `optimize`.
      elite_fraction: see `optimize`.
      inertia: see `optimize`.
      min_variance: see `optimize`.
      budget: model steps for each action; see `shooting.affordable`.

    Raises:
      UsageError: no candidate or iteration, a negative budget, or actions without bounds.
    """
    bounds = _bounds(task)
    _require_iterations(num_iterations)
    num_candidates = shooting.affordable(
        task, num_candidates, budget, lambda number: num_iterations * number
    )
    if not num_candidates:
        return shooting.without_planning(task.policy)

    def search(
        params: Params, plan: Array, observation: Observation, key: Key
    ) -> tuple[Decision, Array]:
        optimized = optimize(
            _score(task, params, observation),
            plan,
            key,
            num_candidates=num_candidates,
            num_iterations=num_iterations,
            elite_fraction=elite_fraction,
            inertia=inertia,
            min_variance=min_variance,
            bounds=bounds,
        )
        plan = optimized.normal.mean
        decision = Decision(greedy=plan[0], sampled=plan[0], is_usable=optimized.is_usable)
        return decision, shooting.shifted(plan)

    return shooting.as_actor(task, lambda params: shooting.centered(task), search)


# --- iCEM ---


def colored_noise(key: Key, shape: tuple[int, ...], exponent: float) -> Array:
    """Normal noise `[..., L, A]` whose power falls as `frequency^-exponent` along L.

    Every entry has variance 1, the constant part included; exponent 0 is white noise.

    Args:
      key: consumed.
      shape: `(..., L, A)`.
      exponent: 0 or more; the constant part counts as frequency 1 / L.
    """
    length = shape[-2]
    frequencies = np.fft.rfftfreq(length)
    frequencies[0] = 1.0 / length
    amplitudes = frequencies ** (-exponent / 2.0)
    # The constant part, and the fastest one of an even length, have no phase: they are real.
    is_real = np.zeros(amplitudes.size, bool)
    is_real[0] = True
    is_real[-1] |= length % 2 == 0
    variance = np.sum(np.where(is_real, 1.0, 2.0) * amplitudes**2) * 2.0 / length**2
    scale = amplitudes / np.sqrt(variance)
    key_real, key_imaginary = jax.random.split(key)
    spectrum_shape = (*shape[:-2], shape[-1], amplitudes.size)

    def part(key: Key, scale: np.ndarray) -> Array:
        return jax.vmap(jnp.multiply, (-1, 0), -1)(
            jax.random.normal(key, spectrum_shape), jnp.asarray(scale, jnp.float32)
        )

    spectrum = jax.lax.complex(
        part(key_real, scale * np.where(is_real, np.sqrt(2.0), 1.0)),
        part(key_imaginary, scale * np.where(is_real, 0.0, 1.0)),
    )
    return jnp.swapaxes(jnp.fft.irfft(spectrum, n=length, axis=-1), -1, -2)


class Memory(NamedTuple):
    """What iCEM carries."""

    plan: Array  # [L, A]
    elites: Array  # [M, L, A]


def population_sizes(
    num_candidates: int, num_iterations: int, decay: float, num_elites: int
) -> tuple[int, ...]:
    """Fresh candidates of each iteration: `N decay^-i`, at least twice the elites.

    Args:
      num_candidates: N of the first iteration.
      num_iterations: how many.
      decay: 1 or more.
      num_elites: of each iteration.
    """
    sizes = (int(num_candidates * decay**-i) for i in range(num_iterations))
    return tuple(max(size, 2 * num_elites) for size in sizes)


def icem(
    task: Task,
    *,
    num_candidates: int = 64,
    num_iterations: int = 3,
    num_elites: int = 10,
    kept_fraction: float = 0.3,
    decay: float = 1.25,
    exponent: float = 2.0,
    inertia: float = 0.1,
    std: float = 0.5,
    budget: int | None = None,
) -> Actor:
    """The planner; its carry is `Memory`.

    Args:
      task: what is planned.
      num_candidates: N of the first iteration, beside the elites that were kept.
      num_iterations: how many.
      num_elites: K, that the normal is refitted to.
      kept_fraction: of them, which are candidates again in the next iteration and, shifted, at the
        next step.
      decay: of the population, see `population_sizes`.
      exponent: of `colored_noise`.
      inertia: share of the old moments in the new ones.
      std: of the normal at the start of every step.
      budget: model steps for each action; see `shooting.affordable`.

    Raises:
      UsageError: no candidate, iteration or elite, a negative budget, or actions without bounds.
    """
    bounds = _bounds(task)
    _require_iterations(num_iterations)
    num_kept = max(round(kept_fraction * num_elites), 1)
    sizes_of = functools.partial(
        population_sizes, num_iterations=num_iterations, decay=decay, num_elites=num_elites
    )
    # Beside the fresh ones: elites that were kept, and the mean in the last iteration.
    num_candidates = shooting.affordable(
        task,
        num_candidates,
        budget,
        lambda number: sum(sizes_of(number)) + num_iterations * num_kept + 1,
    )
    if not num_candidates:
        return shooting.without_planning(task.policy)
    sizes = sizes_of(num_candidates)
    weigh = improve.best(num_elites)

    def search(
        params: Params, memory: Memory, observation: Observation, key: Key
    ) -> tuple[Decision, Memory]:
        score = _score(task, params, observation)
        normal = Normal(mean=memory.plan, variance=jnp.full_like(memory.plan, std**2))
        elites = memory.elites
        for iteration, size in enumerate(sizes):
            key_noise, key_score = jax.random.split(jax.random.fold_in(key, iteration))
            noise = colored_noise(key_noise, (size, *normal.mean.shape), exponent)
            fresh = normal.mean[None] + jnp.sqrt(normal.variance)[None] * noise
            last = [normal.mean[None]] if iteration == len(sizes) - 1 else []
            actions = jnp.clip(jnp.concatenate([fresh, elites, *last]), *bounds)
            values = score(actions, key_score)
            normal = refitted(normal, actions, weigh(values), inertia)
            ranked = jnp.where(jnp.isfinite(values), values, -jnp.inf)
            largest, order = jax.lax.top_k(ranked, num_kept)
            elites = actions[order]
        decision = Decision(
            greedy=elites[0, 0], sampled=elites[0, 0], is_usable=jnp.isfinite(largest[0])
        )
        memory = Memory(plan=shooting.shifted(normal.mean), elites=shooting.shifted(elites))
        return decision, memory

    def start(params: Params) -> Memory:
        del params
        plan = shooting.centered(task)
        return Memory(plan=plan, elites=jnp.broadcast_to(plan, (num_kept, *plan.shape)))

    return shooting.as_actor(task, start, search)


# --- parts ---


def _score(task: Task, params: Params, observation: Observation) -> Score:
    def score(actions: Action, key: Key) -> Array:
        actor = shooting.plan_actor
        return shooting.evaluate(task, actor, params, actions, observation, key).values

    return score


def _bounds(task: Task) -> tuple[float, float]:
    if task.bounds is None:
        raise UsageError("the cross-entropy method needs bounds of actions; give them in the task")
    return task.bounds


def _require_iterations(num_iterations: int) -> None:
    if num_iterations < 1:
        raise UsageError(f"planner: num_iterations is {num_iterations}; give at least 1")
