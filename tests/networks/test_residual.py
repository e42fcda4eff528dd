"""Residual convolutions against numpy, and the identities that make them fast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import settings
from offline_mbrl.networks import residual, torsos
from offline_mbrl.types import UsageError

TINY = residual.ResNetConfig(4, 1, 1, 1, head_channels=3, head_layers=(5,))


def randomized(params, seed=0):
    """Parameters that are neither zero nor one: no mistake hides behind an initialization."""
    leaves, structure = jax.tree.flatten(params)
    generator = np.random.default_rng(seed)
    return structure.unflatten(
        [jnp.asarray(generator.normal(0, 0.5, leaf.shape), jnp.float32) for leaf in leaves]
    )


def made(module, *inputs):
    return randomized(
        jax.jit(lambda *inputs: torsos.init(module, jax.random.key(0), *inputs))(*inputs)
    )


def run(module, params, *inputs):
    return np.asarray(
        jax.jit(lambda params, *inputs: torsos.apply(module, params, *inputs))(params, *inputs)
    )


def image(*shape, seed=1):
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


def slow_activate(x, params):
    """Statistics over the whole image; scale and offset per channel."""
    normal = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return np.maximum(normal * np.asarray(params["scale"]) + np.asarray(params["bias"]), 0)


def slow_convolve(x, kernel, stride=1):
    """Padding SAME: as little as makes ceil(size / stride) cells, the odd one at the end."""
    kernel, width = np.asarray(kernel), kernel.shape[0]
    sizes = [-(-length // stride) for length in x.shape[:2]]
    totals = [
        max((size - 1) * stride + width - length, 0)
        for size, length in zip(sizes, x.shape[:2], strict=True)
    ]
    x = np.pad(x, [(total // 2, total - total // 2) for total in totals] + [(0, 0)])
    cells = [
        [
            np.tensordot(
                x[i * stride : i * stride + width, j * stride : j * stride + width], kernel, 3
            )
            for j in range(sizes[1])
        ]
        for i in range(sizes[0])
    ]
    return np.array(cells)


@pytest.mark.parametrize(
    ("stride", "project", "size"), [(1, False, (5, 4)), (2, True, (5, 4)), (2, True, (6, 7))]
)
def test_a_block_equals_its_forward_in_numpy(stride, project, size):
    block = residual.ResBlock(3, stride, project)
    x = image(*size, 3)
    params = made(block, x)
    y = slow_activate(x, params["norm_0"])
    shortcut = slow_convolve(y, params["shortcut"]["kernel"], stride) if project else x
    z = slow_activate(slow_convolve(y, params["conv_0"]["kernel"], stride), params["norm_1"])
    expected = shortcut + slow_convolve(z, params["conv_1"]["kernel"])
    np.testing.assert_allclose(run(block, params, x), expected, rtol=1e-4, atol=1e-4)


def test_convolutions_have_no_bias_and_a_norm_has_two_numbers_a_channel():
    params = made(residual.ResBlock(3), image(5, 4, 3))
    assert {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    } == {
        "conv_0/kernel": (3, 3, 3, 3),
        "conv_1/kernel": (3, 3, 3, 3),
        "norm_0/scale": (3,),
        "norm_0/bias": (3,),
        "norm_1/scale": (3,),
        "norm_1/bias": (3,),
    }


def test_a_head_equals_its_forward_in_numpy():
    head, x = residual.Head(TINY, 6), image(3, 2, 4)
    params = made(head, x)
    y = slow_convolve(slow_activate(x, params["norm_0"]), params["conv"]["kernel"])
    y = slow_activate(y, params["norm_1"]).ravel() @ np.asarray(params["layer_0"]["kernel"])
    y = slow_activate(y, params["layer_norm_0"])
    output = params["output"]["Dense_0"]
    expected = y @ np.asarray(output["kernel"]) + np.asarray(output["bias"])
    np.testing.assert_allclose(run(head, params, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 5), (4, 6), (21, 21), (1, 1)])
def test_an_average_pool_counts_only_cells_inside(size):
    x = image(*size, 2)
    pooled = np.asarray(residual.average_pool(jnp.asarray(x)))
    sizes = [-(-length // 2) for length in size]
    pads = [
        max((cells - 1) * 2 + 3 - length, 0) // 2 for cells, length in zip(sizes, size, strict=True)
    ]
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            top, left = 2 * i - pads[0], 2 * j - pads[1]
            inside = x[max(top, 0) : top + 3, max(left, 0) : left + 3]
            np.testing.assert_allclose(pooled[i, j], inside.mean((0, 1)), rtol=1e-4, atol=1e-5)
    assert pooled.shape == (*sizes, 2)


def test_the_dynamics_equal_a_convolution_of_the_embedding_beside_one_hot_planes():
    dynamics, embedding = residual.Dynamics(TINY, 3), image(4, 3, 4)
    params = made(dynamics, embedding, jnp.int32(0))
    kernel = np.concatenate([params["conv"]["kernel"], params["action"]["kernel"]], axis=2)
    for action in range(3):
        planes = np.broadcast_to(np.eye(3, dtype=np.float32)[action], (4, 3, 3))
        joined = np.concatenate([slow_activate(embedding, params["norm"]), planes], axis=-1)
        x = embedding + slow_convolve(joined, kernel).astype(np.float32)
        expected = run(residual.Tower(1, 4), params["tower"], x)
        np.testing.assert_allclose(
            run(dynamics, params, embedding, jnp.int32(action)), expected, rtol=1e-4, atol=1e-4
        )


def lowered(function, *inputs):
    text = jax.jit(function).lower(*inputs).as_text()
    return [line.split("-> ")[-1] for line in text.splitlines() if "stablehlo.convolution" in line]


def test_vmap_makes_one_batched_convolution_and_the_state_part_is_computed_once_for_all_actions(
    monkeypatch,
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    dynamics = residual.Dynamics(TINY, 3)
    params = made(dynamics, image(4, 3, 4), jnp.int32(0))

    def single(embedding, action):
        return torsos.apply(dynamics, params, embedding, action)

    ahead = jax.vmap(jax.vmap(single, (None, 0)), (0, None))
    assert lowered(ahead, image(8, 4, 3, 4), jnp.arange(3)) == ["tensor<8x4x3x4xf32>"] + 2 * [
        "tensor<24x4x3x4xf32>"
    ]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("size", [(7, 4), (6, 6), (1, 2)])
def test_a_product_with_patches_is_the_librarys_convolution_and_so_is_its_gradient(
    stride, width, size
):
    x, kernel = 0.1 * image(2, *size, 3), 0.1 * image(width, width, 3, 4)

    def both(convolve):
        def total(x, kernel):
            settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
            return jnp.sum(jnp.sin(3 * convolve(x, kernel, (stride, stride), "SAME", **settings)))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(x, kernel)

    ours, library = both(residual.convolve_patches), both(jax.lax.conv_general_dilated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, library)


def test_bytes_are_divided_by_255_and_floats_are_taken_as_they_are():
    encoder = residual.Representation(TINY)
    frames = np.random.default_rng(0).integers(0, 256, (20, 17, 2), dtype=np.uint8)
    params = made(encoder, frames)
    expected = run(encoder, params, (frames / 255.0).astype(np.float32))
    np.testing.assert_allclose(run(encoder, params, frames), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        run(encoder, params, frames), run(encoder, params, {"pixels": frames})
    )


@pytest.mark.parametrize(
    ("size", "embedding"), [((84, 84), (6, 6)), ((20, 17), (2, 2)), ((5, 3), (1, 1))]
)
def test_an_embedding_is_a_sixteenth_of_the_image(size, embedding):
    encoder = residual.Representation(TINY)
    shape = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x)[0], jnp.zeros((*size, 4))
    ).shape
    assert shape == (*embedding, 4)


IMAGE = jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8)
VECTOR = jax.ShapeDtypeStruct((50,), jnp.float32)


def test_images_are_convolved_unless_the_torso_is_another():
    assert residual.chosen("auto", IMAGE)
    assert residual.chosen("resnet", IMAGE)
    assert not residual.chosen("mlp", IMAGE)
    assert not residual.chosen("auto", VECTOR)
    assert not residual.chosen("auto", {"a": IMAGE, "b": VECTOR})


@pytest.mark.parametrize(
    ("observation", "message"),
    [(VECTOR, r"\(50,\)"), ({"a": IMAGE, "b": IMAGE}, "one image")],
)
def test_convolutions_of_what_is_not_an_image_are_refused(observation, message):
    with pytest.raises(UsageError, match=message):
        residual.chosen("resnet", observation)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (residual.ResNetConfig(channels=1), "channels must be at least 2, got 1"),
        (residual.ResNetConfig(blocks_transition=-1), "blocks_transition must be at least 0"),
        (residual.ResNetConfig(head_layers=(0,)), "head_layers must be one or more sizes"),
    ],
)
def test_sizes_that_make_no_residual_network_are_refused(config, message):
    with pytest.raises(UsageError, match=message):
        settings.require_valid(config, "resnet")
