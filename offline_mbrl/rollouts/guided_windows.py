"""Windows of a diffusion model under a guide: plans, and experience of another policy."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.diffusion import inpainting, window_models, windows
from offline_mbrl.models.diffusion.window_models import WindowModel, WindowParams
from offline_mbrl.rollouts import denoise, guides
from offline_mbrl.rollouts.denoise import Solver
from offline_mbrl.rollouts.guides import UNGUIDED, Guide
from offline_mbrl.rollouts.stitch import SampleWindow
from offline_mbrl.types import Action, Array, Key, Observation, Params, Trajectory


class GuidedParams(NamedTuple):
    """Parameters of a guided model."""

    model: WindowParams
    guide: Params = ()


class RatioParams(NamedTuple):
    """Parameters of the two policies of `policy_ratio`."""

    target: Params
    behavior: Params


# (free entries [n]) -> rows [w, D] in the units of the data, fixed entries included
View = Callable[[Array], Array]
MakeGuide = Callable[[Params, View], Guide]  # (the guide's parameters, view) -> guide
# (params, observation, action) -> (a - mean(s)) / std(s) of a Gaussian policy, [A]
Whitened = Callable[[Params, Observation, Action], Array]
# (params, window [w, D] whose fixed entries count, key) -> [w, D], both standardized
Fill = Callable[[GuidedParams, Array, Key], Array]


def unguided(params: Params, view: View) -> Guide:
    """No guide."""
    del params, view
    return UNGUIDED


def fill(
    model: WindowModel,
    solver: Solver,
    fixed: np.ndarray,
    *,
    make_guide: MakeGuide = unguided,
    temperature: float = 1.0,
) -> Fill:
    """Draws the entries of a window that are not fixed.

    Args:
      model: of windows.
      solver: the steps.
      fixed: `[w, D]` bool, on the host; entries that were noisy in training may be among them, such
        as a goal's, and then the law is approximate.
      make_guide: what samples are drawn towards.
      temperature: of the noises; see `denoise.sample`.
    """
    entries = inpainting.free(fixed)
    size = int(np.sum(~fixed))

    def draw(params: GuidedParams, window: Array, key: Key) -> Array:
        def view(free: Array) -> Array:
            return windows.raw(params.model.scale, entries.merge(free, window))

        denoiser = inpainting.inpainted(model.denoiser(params.model, fixed), entries, window)
        guide = make_guide(params.guide, view)
        x = denoise.sample(solver, denoiser, size, key, guide=guide, temperature=temperature)
        return entries.merge(x, window)

    return draw


def from_observation(
    model: WindowModel,
    solver: Solver,
    *,
    make_guide: MakeGuide = unguided,
    temperature: float = 1.0,
) -> SampleWindow:
    """Windows that start at an observation, for `stitch.stitched`; parameters are `GuidedParams`.

    Args:
      model: of windows.
      solver: the steps.
      make_guide: what samples are drawn towards.
      temperature: of the noises.
    """
    fixed = windows.first_observation(model.layout, model.length)
    draw = fill(model, solver, fixed, make_guide=make_guide, temperature=temperature)

    def sample(params: GuidedParams, observation: Observation, key: Key) -> Trajectory:
        window = window_models.start_window(model, params.model, observation)
        filled = draw(params, window, key)
        return windows.unpacked(model.layout, params.model.scale, filled)

    return sample


def policy_ratio(
    layout: windows.Layout,
    target: Whitened,
    behavior: Whitened,
    *,
    alpha: float = 1.0,
    lambda_: float = 1.0,
) -> MakeGuide:
    """The guide that turns windows of the behavior policy into windows of the target policy.

    Parameters are `RatioParams`.

    Args:
      layout: the entries of a row.
      target: residuals of the target policy.
      behavior: those of the behavior policy.
      alpha: see `guides.log_ratio_tilt`.
      lambda_: the same.
    """

    def make(params: RatioParams, view: View) -> Guide:
        def residuals(whitened: Whitened, params: Params) -> guides.Residuals:
            def of_free(free: Array) -> Array:
                rows = view(free)
                observation, action = rows[:, layout.observation], rows[:, layout.action]
                return jnp.ravel(jax.vmap(whitened, (None, 0, 0))(params, observation, action))

            return of_free

        return Guide(
            tilt=guides.log_ratio_tilt(
                residuals(target, params.target),
                residuals(behavior, params.behavior),
                alpha=alpha,
                lambda_=lambda_,
            )
        )

    return make
