"""Counted operations against closed forms, and against XLA's where that counts convolutions."""

import functools

import jax
import jax.numpy as jnp
import pytest

from offline_mbrl.networks import torsos
from offline_mbrl.training import flops
from offline_mbrl.types import UsageError

A, B, C, D = 3, 5, 7, 2


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def product(x, y):
    return x @ y


def test_a_product_takes_two_operations_an_entry_and_a_contracted_entry():
    assert flops.count(product, array(A, B), array(B, C)) == 2 * A * B * C
    assert flops.count(product, array(D, A, B), array(D, B, C)) == 2 * D * A * B * C
    batched = jax.vmap(product, (0, None))
    assert flops.count(batched, array(D, A, B), array(B, C)) == 2 * D * A * B * C


def test_a_network_and_its_gradients():
    """Backward: twice the forward products, but that no gradient goes to the input."""
    network = torsos.MLP((A, B))
    x = jnp.ones(C)
    params = torsos.init(network, jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(jnp.sin(torsos.apply(network, params, x)))

    forward = 2 * (C * A + A * B)
    assert flops.count(loss, params, x) == forward
    assert flops.count(jax.grad(loss), params, x) == 3 * forward - 2 * C * A


def test_all_turns_of_a_scan_count_and_of_a_condition_the_larger_branch():
    def scan(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=D)[0]

    def condition(x):
        return jax.lax.cond(jnp.sum(x) > 0, scan, lambda x: x @ x, x)

    assert flops.count(scan, array(A, A)) == D * 2 * A**3
    assert flops.count(condition, array(A, A)) == D * 2 * A**3
    twice = jax.jit(jax.checkpoint(lambda x: scan(scan(x))))
    assert flops.count(twice, array(A, A)) == 2 * D * 2 * A**3


def test_what_is_computed_twice_counts_once_and_what_nothing_needs_does_not():
    def twice(x, y):
        return jnp.sin(x @ y) + jax.jit(product)(x, y)

    def useless(x, y):
        _ = x @ y
        return jax.jit(lambda x, y: (x @ y, x @ x))(x, y)[1]

    square = array(A, A)
    assert flops.count(twice, square, square) == 2 * A**3
    assert flops.count(useless, square, square) == 2 * A**3
    assert flops.count(lambda x, y: x @ y + y @ x, square, square) == 2 * 2 * A**3


def test_products_in_a_loop_of_unknown_length_are_refused_and_other_loops_are_not():
    def until(body, x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, body, x)

    with pytest.raises(UsageError, match="how often it turns is not known"):
        flops.count(functools.partial(until, lambda x: x @ x), array(A, A))
    assert flops.count(functools.partial(until, lambda x: x + x), array(A, A)) == 0


def convolution(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


def test_a_convolution_without_padding():
    """`2 N H' W' K^2 C D`."""
    valid = functools.partial(convolution, window_strides=(1, 1), padding="VALID")
    assert flops.count(valid, array(A, 9, 8, B), array(3, 3, B, C)) == 2 * A * 7 * 6 * 9 * B * C


def test_padding_is_not_counted():
    """Along an axis of n cells, a kernel of three meets 3 n - 2."""
    same = functools.partial(convolution, window_strides=(1, 1), padding="SAME")
    meetings = (3 * 9 - 2) * (3 * 8 - 2)
    assert flops.count(same, array(A, 9, 8, B), array(3, 3, B, C)) == 2 * A * meetings * B * C


CONVOLUTIONS = {
    "plain": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 2), "padding": "SAME"},
    "dilated": {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)},
    "grouped": {"window_strides": (2, 1), "padding": "VALID", "feature_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_take_as_much_as_the_convolution_which_is_what_xla_counts(name):
    options = CONVOLUTIONS[name]
    groups = options.get("feature_group_count", 1)
    x, kernel = jnp.ones((A, 9, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))
    forward = functools.partial(convolution, **options)

    def both(x, kernel):
        result, pull = jax.vjp(forward, x, kernel)
        return pull(result)

    alone = flops.count(forward, x, kernel)
    assert flops.count(both, x, kernel) == 3 * alone
    analysis = jax.jit(forward).lower(x, kernel).cost_analysis()
    assert alone == analysis["flops"]
