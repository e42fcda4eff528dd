"""Atari 2600 games, for example `Pong`, under the protocol of the published offline data.

By default: sticky actions 0.25, every action held for 4 frames, maximum over the last two grey
screens, 84 x 84 by area averaging, the game's minimal set of actions, whole games (no end at a lost
life), no random start, the last 4 observations as channels (the first is repeated at the start),
raw rewards, at most 27,000 agent steps. An episode's last observation repeats the one before it, as
in Dopamine: the screen is not looked at once the game is over.
"""

import dm_env
import numpy as np

FRAMES = 30 * 60 * 60  # of an episode: half an hour of play
SIZE = 84
STACK = 4


def names() -> list[str]:
    """All games."""
    import ale_py  # noqa: F401  registers the games
    import gymnasium

    prefix = "ALE/"
    suffix = "-v5"
    return [
        name.removeprefix(prefix).removesuffix(suffix)
        for name in gymnasium.registry
        if name.startswith(prefix) and name.endswith(suffix)
    ]


def load(
    name: str, seed: int, *, max_steps: int = 0, sticky: float = 0.25, skip: int = 4
) -> tuple[dm_env.Environment, int]:
    """A game with frames `[84, 84, 4]` uint8, and its longest episode in agent steps.

    Args:
      name: one of `names()`.
      seed: of the sticky actions.
      max_steps: agent steps after which an episode is cut, with discount 1; 0 for half an hour of
        play.
      sticky: probability that the game repeats the previous action instead, at every frame anew.
      skip: frames for which an action is held; of a single one there is no maximum.
    """
    import ale_py
    import gymnasium

    from offline_mbrl.environments.gymnasium import FromGymnasium

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    limit = max_steps or FRAMES // skip
    environment = gymnasium.make(
        f"ALE/{name}-v5",
        frameskip=1,
        repeat_action_probability=sticky,
        full_action_space=False,
        max_num_frames_per_episode=0,
        disable_env_checker=True,
    )
    wrappers = gymnasium.wrappers
    environment = wrappers.AtariPreprocessing(
        environment, noop_max=0, frame_skip=skip, screen_size=SIZE
    )
    environment = wrappers.FrameStackObservation(environment, STACK, padding_type="reset")
    space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, STACK), np.uint8)
    environment = wrappers.TransformObservation(environment, _channels_last, space)
    return FromGymnasium(wrappers.TimeLimit(environment, limit), seed), limit


def _channels_last(frames: np.ndarray) -> np.ndarray:
    return frames.transpose(1, 2, 0)
