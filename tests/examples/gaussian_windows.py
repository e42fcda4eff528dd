"""LG-1: a scalar linear-Gaussian system whose windows, denoisers and guided laws have closed forms.

`s' = 0.95 s + 0.5 a + 0.1 n`, `s_0 ~ N(1, 0.3^2)`, `r = -(s^2 + 0.1 a^2)`, gamma 0.99, 64 steps. A
window is (s_0, a_0, s_1, ..., a_(w-1)), standardized; s_0 is known, n = 2 w - 1 entries are free.
Everything here is numpy in float64 but the denoisers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

A, B, NOISE = 0.95, 0.5, 0.1
START_MEAN, START_STD = 1.0, 0.3
GAMMA, HORIZON = 0.99, 64
MEAN = np.array([0.062500, -0.025000])  # of s and a under the behavior policy
STD = np.array([0.441382, 0.530256])


class Linear(NamedTuple):
    """`a ~ N(gain s + offset, std^2)`."""

    gain: float
    offset: float
    std: float


BEHAVIOR = Linear(gain=-0.4, offset=0.0, std=0.5)
TARGET = Linear(gain=-0.8, offset=0.2, std=0.3)


class Law(NamedTuple):
    """Free entries given the standardized s_0: `N(gain s_0 + offset, covariance)`."""

    gain: np.ndarray  # [n]
    offset: np.ndarray  # [n]
    covariance: np.ndarray  # [n, n]

    def mean(self, start):
        return self.gain * start + self.offset


def simulate(policy, rng, num_episodes):
    """States `[N, 65]` and actions `[N, 64]` of a policy, raw."""
    states = [START_MEAN + START_STD * rng.normal(size=num_episodes)]
    actions = []
    for _ in range(HORIZON):
        noise = rng.normal(size=(2, num_episodes))
        actions.append(policy.gain * states[-1] + policy.offset + policy.std * noise[0])
        states.append(A * states[-1] + B * actions[-1] + NOISE * noise[1])
    return np.stack(states, axis=1), np.stack(actions, axis=1)


def scale(length):
    """Means and deviations of the 2 w entries of a window."""
    return np.tile(MEAN, length), np.tile(STD, length)


def law(policy, length):
    """The exact law of a window's free entries under a policy."""
    entries = 2 * length
    # Rows: entries as linear functions of (s_0, 1, noises).
    rows = np.zeros((entries, 2 + entries))
    state = np.zeros(2 + entries)
    state[0] = 1.0
    for t in range(length):
        rows[2 * t] = state
        action = policy.gain * state
        action[1] += policy.offset
        action[2 + 2 * t] += policy.std
        rows[2 * t + 1] = action
        state = A * state + B * action
        state[3 + 2 * t] += NOISE
    mean, std = scale(length)
    rows[:, 1] -= mean
    rows = rows / std[:, None]
    noises = rows[1:, 2:]
    # s_0 = MEAN + STD times its standardized value
    return Law(
        gain=rows[1:, 0] * STD[0],
        offset=rows[1:, 1] + rows[1:, 0] * MEAN[0],
        covariance=noises @ noises.T,
    )


def tilted(length, alpha, lambda_):
    """The law of the behavior's windows times `prod pi^alpha beta^-lambda`."""
    before = law(BEHAVIOR, length)
    with jax.enable_x64(True):
        zeros = jnp.zeros(2 * length - 1)
        parts = []
        for policy in (TARGET, BEHAVIOR):
            jacobian = jax.jacfwd(residuals(policy, length, jnp.zeros(())))(zeros)
            constants = [residuals(policy, length, jnp.asarray(s))(zeros) for s in (0.0, 1.0)]
            parts.append(tuple(np.asarray(leaf) for leaf in (jacobian, *constants)))
    inverse = np.linalg.inv(before.covariance)
    precision = inverse.copy()
    information = {start: inverse @ before.mean(start) for start in (0.0, 1.0)}
    for weight, (jacobian, at_zero, at_one) in zip((alpha, -lambda_), parts, strict=True):
        precision += weight * jacobian.T @ jacobian
        information[0.0] -= weight * jacobian.T @ at_zero
        information[1.0] -= weight * jacobian.T @ at_one
    covariance = np.linalg.inv(precision)
    offset = covariance @ information[0.0]
    return Law(gain=covariance @ information[1.0] - offset, offset=offset, covariance=covariance)


def denoiser(of, start):
    """The perfect denoiser of a Gaussian law given s_0, at any level."""
    values, vectors = np.linalg.eigh(of.covariance)

    def denoise(x, level):
        mean = jnp.asarray(of.gain, x.dtype) * start + jnp.asarray(of.offset, x.dtype)
        gains = level.signal * values / (level.signal**2 * values + level.noise**2)
        basis = jnp.asarray(vectors, x.dtype)
        return mean + basis @ (gains.astype(x.dtype) * (basis.T @ (x - level.signal * mean)))

    return denoise


def residuals(policy, length, start):
    """`(a - gain s - offset) / std` of a window's actions, `[w]`, as a function of free entries."""
    mean, std = scale(length)

    def of(free):
        window = jnp.concatenate([jnp.asarray(start, free.dtype)[None], free])
        raw = (window * std.astype(free.dtype) + mean.astype(free.dtype)).reshape(length, 2)
        return (raw[:, 1] - policy.gain * raw[:, 0] - policy.offset) / policy.std

    return of


def log_density(policy, length, start):
    """The sum of the policy's log densities without their constants."""
    of = residuals(policy, length, start)
    return lambda free: -0.5 * jnp.sum(jnp.square(of(free)))


# --- exact propagation of a sampler ---


def output_law(solver, make_denoiser, make_guide, size):
    """The law of a sampler whose steps are affine, by derivatives of its steps; float64.

    Args:
      solver: the steps.
      make_denoiser: (standardized s_0) -> denoiser.
      make_guide: (standardized s_0) -> guide.
      size: n.
    """

    def propagate(start):
        made = make_denoiser(start), make_guide(start)
        noise = jnp.zeros((solver.num_noises, size))
        carry = solver.init(jnp.zeros(size))
        flat, unravel = ravel_pytree(carry)
        spread = ravel_pytree(solver.init(jnp.eye(size)[0]))[0]
        first = jnp.zeros((flat.shape[0], size))
        first = first.at[:size].set(spread[0] * jnp.eye(size))

        def advance(flat, noise, entry):
            carry = solver.step(*made, unravel(flat), noise, entry)
            return ravel_pytree(carry)[0]

        def body(state, entry):
            mean, covariance = state
            moved = jax.jacfwd(advance, 0)(mean, noise, entry)
            added = jax.jacfwd(advance, 1)(mean, noise, entry).reshape(flat.shape[0], -1)
            return (
                advance(mean, noise, entry),
                moved @ covariance @ moved.T + added @ added.T,
            ), None

        state, _ = jax.lax.scan(
            body, (flat, first @ first.T), jax.tree.map(jnp.asarray, solver.schedule)
        )
        return state[0][:size], state[1][:size, :size]

    run = jax.jit(propagate)
    offset, covariance = run(jnp.zeros(()))
    gain = run(jnp.ones(()))[0] - offset
    return Law(gain=np.asarray(gain), offset=np.asarray(offset), covariance=np.asarray(covariance))


# --- what laws of windows mean ---


def rounds_to(figure, printed):
    """Whether a figure is what is printed, to its last digit and a little rounding."""
    unit = 10.0 ** -len(printed.partition(".")[2])
    return abs(figure - float(printed)) <= 0.51 * unit


def divergence(approximate, exact):
    """Kullback-Leibler divergence of an approximate law to the exact one, over s_0; nats."""
    inverse = np.linalg.inv(exact.covariance)
    start = (START_MEAN - MEAN[0]) / STD[0]
    difference = approximate.mean(start) - exact.mean(start)
    slope = (approximate.gain - exact.gain) * START_STD / STD[0]
    size = len(difference)
    log_determinants = (
        np.linalg.slogdet(exact.covariance)[1] - np.linalg.slogdet(approximate.covariance)[1]
    )
    trace = np.trace(inverse @ approximate.covariance)
    return 0.5 * (
        trace
        - size
        + difference @ inverse @ difference
        + slope @ inverse @ slope
        + log_determinants
    )


def _raw(window_law):
    """Windows in raw units are `slope s_0 + constant` plus noise of a covariance; s_0 raw."""
    shift, scales = scale((len(window_law.gain) + 1) // 2)
    slope = np.append(1.0, window_law.gain / STD[0] * scales[1:])
    constant = window_law.offset - window_law.gain * MEAN[0] / STD[0]
    constant = np.append(0.0, constant * scales[1:] + shift[1:])
    covariance = np.zeros((len(scales), len(scales)))
    covariance[1:, 1:] = window_law.covariance * np.outer(scales[1:], scales[1:])
    return slope, constant, covariance


def value(window_law, horizon=HORIZON):
    """The exact discounted return of windows stitched at their last state, w - 1 steps each."""
    slope, constant, noise = _raw(window_law)
    last = len(slope) - 2  # the last state of a window
    mean, variance, total = START_MEAN, START_STD**2, 0.0
    for t in range(0, horizon, last // 2):
        means = slope * mean + constant
        covariance = noise + variance * np.outer(slope, slope)
        squares = np.diag(covariance) + means**2
        for i in range(min(last // 2, horizon - t)):
            total -= GAMMA ** (t + i) * (squares[2 * i] + 0.1 * squares[2 * i + 1])
        mean, variance = means[last], covariance[last, last]
    return total


def dynamics(window_law):
    """The mean square of `s' - A s - B a` in the first window, over NOISE^2: 1 is right."""
    means, covariance = _first_window(window_law)
    seconds = covariance + np.outer(means, means)
    return _mean_square(seconds, np.array([-A, -B, 1.0])) / NOISE**2


def action_std(window_law, gain=TARGET.gain):
    """The deviation of `a - gain s` in the first window: the policy's own is right."""
    _, covariance = _first_window(window_law)
    return np.sqrt(_mean_square(covariance, np.array([-gain, 1.0])))


def _first_window(window_law):
    slope, constant, noise = _raw(window_law)
    return slope * START_MEAN + constant, noise + START_STD**2 * np.outer(slope, slope)


def _mean_square(seconds, coefficients):
    """The second moment of a linear function of neighboring entries, a mean over the steps."""
    size = len(coefficients)
    starts = range(0, len(seconds) - size + 1, 2)
    return np.mean(
        [coefficients @ seconds[i : i + size, i : i + size] @ coefficients for i in starts]
    )
