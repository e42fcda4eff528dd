"""Networks that denoise windows: shapes, published sizes, convolutions as the compiler has them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.networks import denoiser, torsos
from offline_mbrl.networks.denoiser import MLPConfig, UNet, UNetConfig
from offline_mbrl.types import UsageError

KEY = jax.random.key(0)


def num_parameters(module, length, size):
    params = jax.eval_shape(
        lambda key: torsos.init(module, key, jnp.zeros((length, size)), jnp.zeros(())), KEY
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("multiples", "length", "size", "millions"),
    [
        ((1, 2, 4, 8), 32, 14, 3.96),
        ((1, 4, 8), 4, 23, 3.69),
        ((1, 2), 16, 4, 0.25),
        ((1,), 8, 14, 0.06),
    ],
)
def test_the_u_net_has_diffusers_sizes(multiples, length, size, millions):
    module = UNet(UNetConfig(multiples=multiples))
    assert round(num_parameters(module, length, size) / 1e6, 2) == millions


@pytest.mark.parametrize("modulation", ["film", "shift"])
def test_networks_keep_the_shape_and_read_the_condition(modulation):
    window = jax.random.normal(KEY, (8, 3))
    modules = (
        denoiser.ResidualMLP(MLPConfig(width=16, num_blocks=1, modulation=modulation)),
        UNet(UNetConfig(width=8, multiples=(1, 2), modulation=modulation)),
    )
    for module in modules:
        init = functools.partial(torsos.init, module)
        params = jax.jit(init)(KEY, window, jnp.zeros(()))
        apply = jax.jit(
            lambda condition, module=module, params=params: torsos.apply(
                module, params, window, condition
            )
        )
        low, high = apply(-1.0), apply(1.0)
        assert low.shape == window.shape
        assert float(jnp.max(jnp.abs(low - high))) > 1e-3


def test_a_film_scales_and_shifts_and_a_shift_only_shifts():
    features, embedding = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones(1)
    kernel = jnp.array([[0.5, 1.0, 10.0, 20.0]])
    params = {"dense": {"kernel": kernel, "bias": jnp.zeros(4)}}
    film = torsos.apply(denoiser.Modulated("film"), params, features, embedding)
    np.testing.assert_allclose(film, [[11.5, 24.0], [14.5, 28.0]])
    params = {"dense": {"kernel": kernel[:, 2:], "bias": jnp.zeros(2)}}
    shift = torsos.apply(denoiser.Modulated("shift"), params, features, embedding)
    np.testing.assert_allclose(shift, [[11.0, 22.0], [13.0, 24.0]])


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 2)])
@pytest.mark.parametrize("length", [8, 7])
def test_convolutions_are_the_compilers(kernel, stride, length):
    x = jax.random.normal(KEY, (length, 3))
    module = denoiser.Convolution(4, kernel=kernel, stride=stride)
    params = torsos.init(module, KEY, x)
    expected = jax.lax.conv_general_dilated(
        x[None],
        params["dense"]["kernel"].reshape(kernel, 3, 4),
        (stride,),
        [(kernel // 2, kernel // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )[0]
    np.testing.assert_allclose(torsos.apply(module, params, x), expected, atol=1e-5)


def test_doubling_is_the_transposed_convolution_of_four_taps():
    x = jax.random.normal(KEY, (5, 3))
    module = denoiser.Doubling(2)
    params = torsos.init(module, KEY, x)
    even, odd = params["even"]["kernel"], params["odd"]["kernel"]
    taps = [odd[3:], even[:3], odd[:3], even[3:]]  # W_0 .. W_3
    expected = np.zeros((2 * 5 + 2, 2))
    for j in range(5):
        for i, tap in enumerate(taps):
            expected[2 * j + i] += np.asarray(x[j] @ tap)  # padded by one on both sides
    np.testing.assert_allclose(torsos.apply(module, params, x), expected[1:-1], atol=1e-5)


def test_windows_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="6 rows: use a multiple of 8"):
        denoiser.require_divisible(6, UNetConfig())
    with pytest.raises(UsageError, match="`width` is 12: use a multiple of 8"):
        denoiser.require_divisible(8, UNetConfig(width=12))
