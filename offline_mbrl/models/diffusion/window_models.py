"""A denoiser of windows with its loss, and with a sampler the model of trajectories it makes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.diffusion import denoisers, inpainting, windows
from offline_mbrl.models.diffusion.denoisers import Denoiser, DrawLevel, Form
from offline_mbrl.models.diffusion.windows import Layout, Scale
from offline_mbrl.types import (
    Array,
    Key,
    Metrics,
    Observation,
    Params,
    PyTree,
    Trajectory,
    TrajectoryModel,
)


class WindowParams(NamedTuple):
    """Parameters of a model of windows; only `network` is learned."""

    network: Params
    scale: Scale


class WindowNetwork(NamedTuple):
    """A network of windows as functions of its parameters."""

    init: Callable[[Key], Params]
    # (params, window [w, D] with noisy entries scaled, condition []) -> [w, D]
    apply: Callable[[Params, Array, Array], Array]


class WindowModel(NamedTuple):
    """What a model of windows is before a sampler makes a `TrajectoryModel` of it."""

    init: Callable[[Key, PyTree], WindowParams]
    loss: Callable[[WindowParams, Trajectory, Key], tuple[Array, Metrics]]
    # (params, fixed [w, D] bool) -> a denoiser of windows [w, D]
    denoiser: Callable[[WindowParams, np.ndarray], Denoiser]
    layout: Layout
    length: int  # w


# (denoiser of free entries, their number n, key) -> a sample [n]
Sampler = Callable[[Denoiser, int, Key], Array]


def make(
    network: WindowNetwork,
    layout: Layout,
    length: int,
    *,
    form: Form,
    draw_level: DrawLevel,
    weights: np.ndarray | None = None,
) -> WindowModel:
    """A model of windows that is trained with their first observation clean.

    Args:
      network: of windows `[w, D]`.
      layout: the entries of a row.
      length: w, rows.
      form: what the network predicts.
      draw_level: the levels that it is trained at.
      weights: `[w, D]` of the entries, such as `entry_weights`; None: all 1.
    """
    fixed = windows.first_observation(layout, length)
    of_entries = np.ones(fixed.shape, np.float32) if weights is None else weights

    def init(key: Key, statistics: PyTree) -> WindowParams:
        return WindowParams(network=network.init(key), scale=windows.scale_of(layout, statistics))

    def apply(params: WindowParams) -> denoisers.Network:
        return lambda window, condition: network.apply(params.network, window, condition)

    def single(params: WindowParams, trajectory: Trajectory, key: Key) -> Array:
        key_level, key_noise = jax.random.split(key)
        clean = windows.packed(layout, params.scale, trajectory)
        return denoisers.loss(
            apply(params),
            form,
            clean,
            jax.random.normal(key_noise, clean.shape),
            draw_level(key_level),
            weights=of_entries * windows.happened(trajectory)[:, None],
            fixed=fixed,
        )

    def loss(params: WindowParams, batch: Trajectory, key: Key) -> tuple[Array, Metrics]:
        still = params._replace(scale=jax.lax.stop_gradient(params.scale))
        keys = jax.random.split(key, batch.reward.shape[0])
        value = jnp.mean(jax.vmap(single, (None, 0, 0))(still, batch, keys))
        return value, {"loss/denoising": value}

    def denoiser(params: WindowParams, fixed: np.ndarray) -> Denoiser:
        return denoisers.denoiser(apply(params), form, fixed)

    return WindowModel(init=init, loss=loss, denoiser=denoiser, layout=layout, length=length)


def trajectory_model(model: WindowModel, sampler: Sampler) -> TrajectoryModel:
    """The model with a way to sample: windows that start at a given observation.

    Args:
      model: of windows.
      sampler: for example `partial(denoise.sample, denoise.ancestral(schedule))`.
    """
    layout = model.layout
    entries = inpainting.free(windows.first_observation(layout, model.length))
    size = int(np.sum(~entries.fixed))

    def sample(params: WindowParams, condition: PyTree, key: Key) -> Trajectory:
        window = start_window(model, params, condition)
        denoiser = inpainting.inpainted(model.denoiser(params, entries.fixed), entries, window)
        return windows.unpacked(
            layout, params.scale, entries.merge(sampler(denoiser, size, key), window)
        )

    return TrajectoryModel(init=model.init, loss=model.loss, sample=sample)


def start_window(model: WindowModel, params: WindowParams, observation: Observation) -> Array:
    """A window `[w, D]` of zeros with this flat observation, raw, in its first row."""
    layout = model.layout
    columns = layout.observation
    scale = params.scale
    standardized = (observation - scale.mean[columns]) / scale.std[columns]
    return jnp.zeros((model.length, layout.size)).at[0, columns].set(standardized)
