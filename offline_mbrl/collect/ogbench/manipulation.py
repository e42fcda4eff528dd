"""OGBench's scripted policies of the robot arm: plans (`play`) and feedback (`noisy`)."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.collect.ogbench import playing
from offline_mbrl.collect.ogbench.playing import Play, Played, Script
from offline_mbrl.environments import ogbench

TARGETS = {  # what there is to move
    "cube": ("cube",),
    "scene": ("cube", "button", "drawer", "window"),
    "puzzle": ("button",),
}
ORACLES = "ogbench.manipspace.oracles"
PLAN = {"noise": 0.1, "noise_smoothing": 0.5}
FEEDBACK = {"min_norm": 0.4}
NOISE = 0.1  # largest standard deviation of an episode of feedback
SPREAD = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # that of each entry of an action, as a multiple
RANDOM_ACTIONS = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}  # share of them in `noisy`
STACKING = {"cube-single": (0.0, 0.0), "cube-double": (0.0, 0.25)}  # probabilities of an episode
STACKING_ELSEWHERE = (0.5, 0.5)
CUBE = slice(14, 17)  # the first cube's place in `qpos`


class Habits(NamedTuple):
    """What an episode keeps to."""

    stacking: float  # probability that a cube's target is another cube
    noise: float  # standard deviation
    random_share: float  # probability of a random action


def player(name: str, kind: str) -> Play:
    """What plays the environment `name`, for example `cube-single`.

    Args:
      name: without its version.
      kind: `play` or `noisy`.
    """
    environment = ogbench.make(
        name, terminate_at_goal=False, mode="data_collection", max_episode_steps=-1
    )
    family = name.partition("-")[0]
    policies = {target: _policy(environment, family, target, kind) for target in TARGETS[family]}

    def start(seed: int | None, draws: np.random.Generator) -> Script:
        observation, info = environment.reset(seed=seed)
        noisy = kind == "noisy"
        habits = Habits(
            stacking=draws.uniform(*STACKING.get(name, STACKING_ELSEWHERE)),
            noise=draws.uniform(0, NOISE) if noisy else 0.0,
            random_share=RANDOM_ACTIONS[family] if noisy else 0.0,
        )
        return _script(environment, policies, observation, info, habits, draws)

    if family == "scene":
        return playing.player(environment, start, keep=cube_in_sight)
    return playing.player(environment, start)


def cube_in_sight(played: Played) -> bool:
    """Whether a scene's cube stayed where the camera sees it, or in the drawer."""
    _, y, z = played.state["qpos"][:-1, CUBE].T
    beyond_right = y >= 0.29
    beyond_left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (beyond_right | beyond_left).any()


def _policy(environment: Any, family: str, target: str, kind: str) -> Any:
    """The package's policy of a target."""
    folder = "plan" if kind == "play" else "markov"
    module = importlib.import_module(f"{ORACLES}.{folder}.{target}_{folder}")
    settings: dict[str, Any] = dict(PLAN if kind == "play" else FEEDBACK)
    if family == "puzzle":
        settings["gripper_always_closed"] = True
    if (family, target, kind) == ("scene", "cube", "noisy"):
        settings["max_step"] = 100
    oracle = getattr(module, f"{target.capitalize()}{folder.capitalize()}Oracle")
    return oracle(env=environment, **settings)


def _script(
    environment: Any,
    policies: Mapping[str, Any],
    observation: Any,
    info: Mapping[str, Any],
    habits: Habits,
    draws: np.random.Generator,
) -> Script:
    """The policy of the current target; a new target is drawn when it is done."""

    def begin(observation: Any, info: Mapping[str, Any]) -> Any:
        policy = policies[info["privileged/target_task"]]
        policy.reset(observation, info)
        return policy

    policy = begin(observation, info)

    def choose(observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        if draws.random() < habits.random_share:
            return draws.uniform(-1, 1, SPREAD.shape)
        action = np.asarray(policy.select_action(observation, info))
        return action + draws.normal(0, habits.noise * SPREAD) if habits.noise else action

    def proceed(info: Mapping[str, Any]) -> None:
        nonlocal policy
        if policy.done:
            policy = begin(*environment.unwrapped.set_new_target(p_stack=habits.stacking))

    return Script(observation=observation, info=info, choose=choose, proceed=proceed)
