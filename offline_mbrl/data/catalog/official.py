"""Names and facts of the official RLDS datasets and of the ones generated here; no data, no imports
of TFDS."""

from typing import NamedTuple

from offline_mbrl.data.catalog import atari, atari_scores
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


class Reference(NamedTuple):
    """Undiscounted returns that stand for 0 and 1 of the normalized score."""

    random: float
    expert: float


# --- generated here: a DQN's whole online run (RL Unplugged's bsuite sets, ROSMO's episode counts)
# ---


class Local(NamedTuple):
    """A dataset that is generated here."""

    num_episodes: int  # 0 for no limit
    horizon: int
    reference: Reference | None
    action: DiscreteActions | BoundedActions = DiscreteActions(3)
    num_steps: int = 0  # agent steps in all; 0 where episodes are counted
    frame_stack: int = 1
    behavior: str = "DQN, its whole online run"
    gamma: float = 0.99
    variants: tuple[str, ...] = ("noise", "fraction", "episodes", "seed")


LOCAL = {
    "catch": Local(2000, 9, Reference(-0.667, 1.0)),
    "cartpole": Local(1000, 1001, Reference(64.833, 1001.0)),
    "mountain_car": Local(500, 1000, Reference(-1000.0, -102.167)),
}

# percent; one episode of every block of 100 // fraction is kept
FRACTIONS = (1, 2, 4, 5, 10, 20, 25, 50, 100)


def check_fraction(fraction: int) -> None:
    """Refuses a percentage that no equal blocks of episodes give.

    Raises:
      UsageError: the fraction does not divide 100.
    """
    if fraction not in FRACTIONS:
        raise UsageError(
            f"fraction must divide 100 ({', '.join(map(str, FRACTIONS))}), got {fraction}"
        )


# --- RL Unplugged ---

# TFDS's finger_turn_hard lacks the observation `touch`: policies trained on it do not fit the
# simulator.
CONTROL_WITHOUT_SIMULATOR = ("finger_turn_hard",)
CONTROL = (
    "cartpole_swingup",
    "cheetah_run",
    "finger_turn_hard",
    "fish_swim",
    "humanoid_run",
    "manipulator_insert_ball",
    "manipulator_insert_peg",
    "walker_stand",
    "walker_walk",
)
CONTROL_HORIZON = 1000
CONTROL_GAMMA = 0.995  # of off-policy evaluation on these tasks (arXiv:2103.16596)
CONTROL_SIZES = {  # task -> episodes of the official data, entries of an action
    "cartpole_swingup": (40, 1),
    "cheetah_run": (300, 6),
    "finger_turn_hard": (500, 2),
    "fish_swim": (200, 5),
    "humanoid_run": (3000, 21),
    "manipulator_insert_ball": (1500, 5),
    "manipulator_insert_peg": (1500, 5),
    "walker_stand": (200, 6),
    "walker_walk": (200, 6),
}
ATARI_GAMES = tuple(atari_scores.GAMES)

# --- D4RL ---

# The data are from gym's v2 tasks; gymnasium's v4 are the same where it has them. Its Ant has other
# observations.
D4RL_SIMULATORS = {
    "halfcheetah": "gym/HalfCheetah-v4",
    "hopper": "gym/Hopper-v4",
    "walker2d": "gym/Walker2d-v4",
    "ant": None,
}
D4RL_REFERENCES = {
    "halfcheetah": Reference(-280.18, 12135.0),
    "hopper": Reference(-20.27, 3234.3),
    "walker2d": Reference(1.63, 4592.3),
    "ant": Reference(-325.6, 3879.7),
}
_LATER = ("expert", "full-replay", "medium", "medium-expert", "medium-replay", "random")
D4RL_CONFIGS = (
    *(f"v0-{kind}" for kind in ("expert", "medium", "medium-expert", "mixed", "random")),
    *(f"{version}-{kind}" for version in ("v1", "v2") for kind in _LATER),
)
D4RL_HORIZON = 1000
ANTMAZE_CONFIGS = tuple(
    f"{maze}-{version}"
    for version in ("v0", "v2")
    for maze in (
        "umaze",
        "umaze-diverse",
        "medium-play",
        "medium-diverse",
        "large-diverse",
        "large-play",
    )
)

# Normalized scores of data whose simulator is known, wherever the data come from.
REFERENCES = {
    **{f"bsuite/{name}": local.reference for name, local in LOCAL.items()},
    **{
        simulator: D4RL_REFERENCES[task] for task, simulator in D4RL_SIMULATORS.items() if simulator
    },
    **{
        f"atari/{name}": Reference(game.random, game.dqn)
        for name, game in atari_scores.GAMES.items()
    },
}
# A second scale beside it: from the ALE's random policy to a human.
HUMAN_REFERENCES = {
    f"atari/{name}": Reference(game.ale_random, game.human)
    for name, game in atari_scores.GAMES.items()
    if game.human == game.human  # not NaN
}


def human_reference(simulator: str) -> Reference | None:
    """The human scale of a simulator, `atari/Pong?max_steps=20000` for example; None where there is
    none."""
    return HUMAN_REFERENCES.get(simulator.partition("?")[0])


# --- generated here: scripted play of any game ---

LOCAL_ATARI = {
    f"atari/{game}": Local(
        0,
        atari.HORIZON,
        REFERENCES.get(f"atari/{game}"),
        DiscreteActions(size),
        atari.LOCAL_STEPS,
        atari.FRAME_STACK,
        atari.behavior(game),
        variants=("steps", "episodes", "seed"),
    )
    for game, size in atari.NUM_ACTIONS.items()
}

# --- generated here: the control suite, by policies of every strength; the sizes of RL Unplugged
# ---

# Uniform actions, and the best mean return of the snapshots that make the data, where their
# policies are shipped.
CONTROL_REFERENCES = {
    "cartpole_swingup": Reference(28.635, 768.823),
    "cheetah_run": Reference(3.553, 631.068),
    "walker_walk": Reference(31.911, 964.836),
}
LOCAL_CONTROL = {
    f"control/{task}": Local(
        episodes,
        CONTROL_HORIZON,
        CONTROL_REFERENCES.get(task),
        BoundedActions((-1.0,) * size, (1.0,) * size),
        behavior="SAC, snapshots of several runs; sampled actions, one in twenty uniform",
        gamma=CONTROL_GAMMA,
        variants=("episodes", "seed"),
    )
    for task, (episodes, size) in CONTROL_SIZES.items()
}


def local(environment: str) -> Local | None:
    """The dataset `local/<environment>`: of `catch`, `atari/Pong`, `control/cheetah_run`; None
    where there is none."""
    return LOCAL.get(environment) or LOCAL_ATARI.get(environment) or LOCAL_CONTROL.get(environment)
