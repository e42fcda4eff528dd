"""Returns along one trajectory; vmap for many."""

import chex

from offline_mbrl.types import Array


def n_step_returns(r_t: Array, discount_t: Array, v_t: Array, *, n: int) -> Array:
    """Bootstrapped n-step returns from each of the first `T - n + 1` steps.

    `z_i = r_i + d_i r_{i+1} + ... + d_i ... d_{i+n-1} v_{i+n}`, where `d_i` discounts what follows
    step i.

    Args:
      r_t: `[T]` reward of step t.
      discount_t: `[T]` gamma times the continuation of step t: 0 when it ended in a true terminal.
      v_t: `[T + 1]` value of the state before step t, and of the one after the last.
      n: number of rewards in each return, 1 to T.

    Returns:
      `[T - n + 1]`.
    """
    chex.assert_equal_shape([r_t, discount_t])
    num_steps = r_t.shape[0]
    chex.assert_shape(v_t, (num_steps + 1,))
    if not 1 <= n <= num_steps:
        raise ValueError(f"n must lie in 1..{num_steps} (the length of the trajectory), got {n}")
    size = num_steps - n + 1
    returns = v_t[n:]
    for i in reversed(range(n)):
        returns = r_t[i : i + size] + discount_t[i : i + size] * returns
    return returns
