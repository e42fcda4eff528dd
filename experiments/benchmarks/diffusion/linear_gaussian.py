"""Off-policy evaluation by a trained denoiser on a scalar linear-Gaussian system, beside the truth.

`s' = 0.95 s + 0.5 a + 0.1 n`, reward `-(s^2 + 0.1 a^2)`, gamma 0.99, 64 steps; 1000 episodes of a
behavior policy. A residual MLP learns windows of 8 rows; second-order steps guided by the ratio of
the policies give episodes of the target policy. Reported are the estimated value and its standard
error, the deviation of `a - gain s` (the policy's own is right) and the mean square of
`s' - 0.95 s - 0.5 a` over the noise's (1 is right).

    python experiments/benchmarks/diffusion/linear_gaussian.py --num-updates 20000
"""

import functools
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from offline_mbrl.data import normalize
from offline_mbrl.data.memory import Dataset
from offline_mbrl.models.diffusion import denoisers, fitting, levels, window_models, windows
from offline_mbrl.models.diffusion.window_models import WindowModel, WindowNetwork, WindowParams
from offline_mbrl.networks import denoiser, torsos
from offline_mbrl.problems import linear_gaussian as linear
from offline_mbrl.rollouts import denoise, guided_windows, stitch, unroll
from offline_mbrl.rollouts.guided_windows import GuidedParams, RatioParams
from offline_mbrl.training.fit import fit
from offline_mbrl.types import Array, Context, Params, Trajectory

GAMMA, HORIZON = 0.99, 64
SYSTEM = linear.System(
    dynamics=np.array([[0.95, 0.5, 0.0], [0.0, 0.0, 1.0]]),
    reward=np.diag([-1.0, -0.1, 0.0]),
    start=np.array([[1.0 + 0.3**2, 1.0], [1.0, 1.0]]),
)


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    num_updates: int = 20_000
    batch_size: int = 256
    num_episodes: int = 1_000  # of the data
    num_trajectories: int = 500  # of an estimate
    window: int = 8  # rows
    width: int = 256  # of the network
    steps: tuple[int, ...] = (8, 16)  # of the sampler
    seed: int = 0


def policy(gain: float, offset: float, std: float) -> Params:
    """Parameters of `a ~ N(gain s + offset, std^2)`."""
    return {
        "gain": np.array([[gain]], np.float32),
        "offset": np.array([offset], np.float32),
        "log_std": np.array([np.log(std)], np.float32),
    }


BEHAVIOR, TARGET = policy(-0.4, 0.0, 0.5), policy(-0.8, 0.2, 0.3)


def value(params: Params) -> float:
    """The exact value of a policy."""
    _, _, quadratic, constant = linear.coefficients(SYSTEM, params, GAMMA, HORIZON)
    return float(np.sum(quadratic * SYSTEM.start) + constant)


def whitened(params: Params, observation: Array, action: Array) -> Array:
    """`(a - gain s - offset) / std`, `[1]`."""
    mean = params["gain"] @ observation + params["offset"]
    return (action - mean) / jnp.exp(params["log_std"])


def logged(config: Config) -> Dataset:
    """Episodes of the behavior policy."""
    rng = np.random.default_rng(config.seed)
    state, action, reward, _ = linear.simulate(SYSTEM, BEHAVIOR, rng, config.num_episodes, HORIZON)
    final = ((0, 0), (0, 1))
    is_last = np.tile(np.arange(HORIZON + 1) == HORIZON, (config.num_episodes, 1))
    columns = {
        "observation": state.reshape(-1, 1),
        "action": np.pad(action, (*final, (0, 0))).reshape(-1, 1),
        "reward": np.pad(reward, final).ravel(),
        "is_last": is_last.ravel(),
        "is_terminal": np.zeros(is_last.size, bool),
    }
    return Dataset.from_arrays({name: np.asarray(leaf) for name, leaf in columns.items()})


def window_model(config: Config) -> WindowModel:
    """A residual MLP of windows of states and actions, with EDM's form and levels."""
    layout = windows.Layout(observation_size=1, action_size=1)
    module = denoiser.ResidualMLP(denoiser.MLPConfig(width=config.width))
    zeros = jnp.zeros((config.window, layout.size)), jnp.zeros(())
    network = WindowNetwork(
        init=lambda key: torsos.init(module, key, *zeros),
        apply=functools.partial(torsos.apply, module),
    )
    return window_models.make(
        network,
        layout,
        config.window,
        form=denoisers.preconditioned(),
        draw_level=denoisers.log_normal(),
    )


def fitted(config: Config, model: WindowModel) -> WindowParams:
    """Parameters of a model after training, averaged."""
    dataset = logged(config)
    context = Context(statistics=normalize.full_statistics(dataset))
    learner = fitting.make(
        model, fitting.Config(num_updates=config.num_updates, batch_size=config.batch_size)
    )
    key = jax.random.key(config.seed)
    result = fit(learner, dataset, key=key, num_updates=config.num_updates, context=context)
    return learner.policy_params(result.state.learner, context)


def measures(trajectories: Trajectory, params: Params) -> dict[str, float]:
    """Value, standard error, deviation of actions, and what is left of the dynamics."""
    returns = jax.vmap(unroll.discounted_return, (0, None))(trajectories, GAMMA)
    state, action = trajectories.observation[:, :-1, 0], trajectories.action[..., 0]
    after = trajectories.observation[:, 1:, 0]
    residual = after - 0.95 * state - 0.5 * action
    return {
        "value": float(jnp.mean(returns)),
        "stderr": float(jnp.std(returns) / np.sqrt(len(returns))),
        "std": float(jnp.std(action - params["gain"][0, 0] * state)),
        "dynamics": float(jnp.mean(jnp.square(residual)) / linear.DYNAMICS_NOISE**2),
    }


def estimated(
    config: Config, model: WindowModel, params: WindowParams, num_steps: int, target: Params | None
) -> dict[str, float]:
    """Measures of the behavior policy's episodes, or of a target policy's."""
    guide = guided_windows.unguided
    if target is not None:
        guide = guided_windows.policy_ratio(model.layout, whitened, whitened)
    solver = denoise.second_order(levels.thinned(levels.cosine(256), num_steps))
    rollout = stitch.stitched(
        guided_windows.from_observation(model, solver, make_guide=guide),
        horizon=HORIZON,
        window_steps=config.window - 1,
        reward=lambda state, action, after: -(state[0] ** 2) - 0.1 * action[0] ** 2,
    )
    key_start, key_rollout = jax.random.split(jax.random.key(config.seed + 1))
    starts = 1.0 + 0.3 * jax.random.normal(key_start, (config.num_trajectories, 1))
    keys = jax.random.split(key_rollout, config.num_trajectories)
    all_params = GuidedParams(model=params, guide=RatioParams(target=target, behavior=BEHAVIOR))
    trajectories = jax.jit(jax.vmap(rollout, (None, 0, 0)))(all_params, starts, keys)
    finite = jnp.all(trajectories.extras["diverged"] == 0.0, axis=1)
    row = measures(trajectories, BEHAVIOR if target is None else target)
    return {**row, "diverged": int(jnp.sum(~finite))}


def main(config: Config) -> None:
    """Fits, estimates, prints a row for each number of steps and each policy."""
    begin = time.monotonic()
    model = window_model(config)
    params = fitted(config, model)
    print(f"{config.num_updates} updates in {time.monotonic() - begin:.0f} s")
    for num_steps in config.steps:
        for name, target in (("behavior", None), ("target", TARGET)):
            begin = time.monotonic()
            row = estimated(config, model, params, num_steps, target)
            seconds = time.monotonic() - begin
            exact = value(BEHAVIOR if target is None else target)
            figures = ", ".join(f"{key} {figure:.3f}" for key, figure in row.items())
            print(f"{name}, {num_steps} steps: {figures}, exact {exact:.3f}, {seconds:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Config))
