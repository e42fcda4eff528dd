"""Atari 2600 games, for example `Pong`, under the evaluation protocol of the published offline data.

Sticky actions 0.25, every action held for 4 frames, maximum over the last two, 84 x 84 grey by area averaging, the
game's minimal set of actions, whole games (no end at a lost life), no random start, the last 4 frames as channels
(the first is repeated at the start), at most 27,000 agent steps.
"""

import dm_env
import numpy as np

MAX_STEPS = 27_000  # 30 minutes of play at 60 frames a second


def names() -> list[str]:
    """All games."""
    import ale_py  # noqa: F401  registers the games
    import gymnasium

    prefix, suffix = "ALE/", "-v5"
    found = [name for name in gymnasium.registry if name.startswith(prefix) and name.endswith(suffix)]
    return [name.removeprefix(prefix).removesuffix(suffix) for name in found]


def load(name: str, seed: int, max_steps: int = 0) -> tuple[dm_env.Environment, int]:
    """A game with frames `[84, 84, 4]` uint8, and its longest episode in agent steps."""
    import ale_py
    import gymnasium

    from offline_mbrl.environments.gymnasium import FromGymnasium

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    limit = max_steps or MAX_STEPS
    environment = gymnasium.make(
        f"ALE/{name}-v5", frameskip=1, repeat_action_probability=0.25, full_action_space=False,
        max_num_frames_per_episode=0, disable_env_checker=True)  # fmt: skip
    environment = gymnasium.wrappers.AtariPreprocessing(environment, noop_max=0, frame_skip=4, screen_size=84)
    environment = gymnasium.wrappers.FrameStackObservation(environment, 4, padding_type="reset")
    space = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    environment = gymnasium.wrappers.TransformObservation(environment, lambda frames: frames.transpose(1, 2, 0), space)
    return FromGymnasium(gymnasium.wrappers.TimeLimit(environment, limit), seed), limit
