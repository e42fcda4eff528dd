"""Facts of the official RLDS datasets and of the locally generated ones, without importing TFDS."""

from typing import NamedTuple

from offline_mbrl.data.catalog import atari, atari_scores, d4rl, ogbench
from offline_mbrl.data.catalog.reference import Reference
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError

# --- generated here: all episodes of a DQN's online run, as RL Unplugged's bsuite data ---


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
    simulator: str = ""  # where it is not named as the data are


LOCAL = {  # with the numbers of episodes of the published ROSMO datasets
    "catch": Local(num_episodes=2000, horizon=9, reference=Reference(random=-0.667, expert=1.0)),
    "cartpole": Local(
        num_episodes=1000, horizon=1001, reference=Reference(random=64.833, expert=1001.0)
    ),
    "mountain_car": Local(
        num_episodes=500, horizon=1000, reference=Reference(random=-1000.0, expert=-102.167)
    ),
}

# --- generated here: the same environments under uniform actions ---

RANDOM = "-random"
RANDOM_EPISODES = 300
LOCAL_RANDOM = {
    f"{name}{RANDOM}": facts._replace(
        num_episodes=RANDOM_EPISODES,
        behavior="uniform actions",
        variants=("noise", "episodes", "seed"),
        simulator=f"bsuite/{name}",
    )
    for name, facts in LOCAL.items()
}

# In percent: one episode of every block of 100 // fraction is kept.
FRACTIONS = (1, 2, 4, 5, 10, 20, 25, 50, 100)


def check_fraction(fraction: int) -> None:
    """Refuses a percentage that is not the inverse of a number of episodes.

    Raises:
      UsageError: the fraction does not divide 100.
    """
    if fraction not in FRACTIONS:
        raise UsageError(
            f"fraction must divide 100 ({', '.join(map(str, FRACTIONS))}), got {fraction}"
        )


# --- RL Unplugged ---

# TFDS's finger_turn_hard lacks the observation `touch`, which the simulator's policies need.
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
CONTROL_GAMMA = 0.995  # as in off-policy evaluation on these tasks (arXiv:2103.16596)
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

# References by simulator, whatever the source of the data.
REFERENCES = {
    **{f"bsuite/{name}": local.reference for name, local in LOCAL.items()},
    **{
        simulator: d4rl.MUJOCO_REFERENCES[task]
        for task, simulator in d4rl.SIMULATORS.items()
        if simulator
    },
    **{
        f"atari/{name}": Reference(game.random, game.dqn)
        for name, game in atari_scores.GAMES.items()
    },
}
# A second scale: from the ALE's random policy to a human.
HUMAN_REFERENCES = {
    f"atari/{name}": Reference(game.ale_random, game.human)
    for name, game in atari_scores.GAMES.items()
    if game.human == game.human  # not NaN
}


def human_reference(simulator: str) -> Reference | None:
    """The human scale of a simulator, such as `atari/Pong?max_steps=20000`; None without one."""
    return HUMAN_REFERENCES.get(simulator.partition("?")[0])


# --- generated here: scripted play of any game ---

LOCAL_ATARI = {
    f"atari/{game}": Local(
        num_episodes=0,
        horizon=atari.HORIZON,
        reference=REFERENCES.get(f"atari/{game}"),
        action=DiscreteActions(size),
        num_steps=atari.LOCAL_STEPS,
        frame_stack=atari.FRAME_STACK,
        behavior=atari.behavior(game),
        variants=("steps", "episodes", "seed"),
    )
    for game, size in atari.NUM_ACTIONS.items()
}

# --- generated here: the control suite, by policies of every strength, in RL Unplugged's sizes ---

# Returns of uniform actions and of the best snapshot, for tasks whose policies are shipped.
CONTROL_REFERENCES = {
    "cartpole_swingup": Reference(28.635, 768.823),
    "cheetah_run": Reference(3.553, 631.068),
    "walker_walk": Reference(31.911, 964.836),
}
LOCAL_CONTROL = {
    f"control/{task}": Local(
        num_episodes=episodes,
        horizon=CONTROL_HORIZON,
        reference=CONTROL_REFERENCES.get(task),
        action=BoundedActions((-1.0,) * size, (1.0,) * size),
        behavior="SAC, snapshots of several runs; sampled actions, one in twenty uniform",
        gamma=CONTROL_GAMMA,
        variants=("episodes", "seed"),
    )
    for task, (episodes, size) in CONTROL_SIZES.items()
}


# --- generated here: gymnasium's MuJoCo tasks by D4RL's recipes ---

MUJOCO_SIMULATORS = {
    "ant": "gym/Ant-v5?contact_forces=0",  # its policies do not come with the package
    "halfcheetah": "gym/HalfCheetah-v5",
    "hopper": "gym/Hopper-v5",
    "pendulum": "gym/Pendulum-v1",
    "walker2d": "gym/Walker2d-v5",
}
# Entries of an action, and the longest episode.
_MUJOCO_SIZES = {
    "halfcheetah": (6, 1000),
    "hopper": (3, 1000),
    "pendulum": (1, 200),
    "walker2d": (6, 1000),
}
# Mean returns of uniform actions and of the expert's data.
MUJOCO_REFERENCES = {
    "halfcheetah": Reference(-266.5, 7762.0),
    "hopper": Reference(16.4, 2979.1),
    "pendulum": Reference(-1220.1, -143.7),
    "walker2d": Reference(1.4, 4213.6),
}
MUJOCO_KINDS = {  # D4RL's numbers of steps
    "random": 1_000_000,
    "medium": 1_000_000,
    "medium-replay": 300_000,
    "medium-expert": 2_000_000,
    "expert": 1_000_000,
    "full-replay": 1_000_000,
}
LOCAL_MUJOCO = {
    f"mujoco/{task}-{kind}": Local(
        num_episodes=0,
        horizon=horizon,
        reference=MUJOCO_REFERENCES.get(task),
        action=BoundedActions((-1.0,) * size, (1.0,) * size),
        num_steps=steps,
        behavior="SAC, snapshots of one run by D4RL's recipes; sampled actions",
        variants=("steps", "seed"),
        simulator=MUJOCO_SIMULATORS[task],
    )
    for task, (size, horizon) in _MUJOCO_SIZES.items()
    for kind, steps in MUJOCO_KINDS.items()
}


# --- generated here: OGBench's environments by its own scripts ---

LOCAL_OGBENCH = {
    f"ogbench/{dataset}": Local(
        num_episodes=0,
        horizon=facts.horizon,
        reference=None,
        action=BoundedActions((-1.0,) * facts.action_size, (1.0,) * facts.action_size),
        num_steps=ogbench.STEPS,
        behavior=facts.behavior,
        variants=("steps", "seed"),
    )
    for dataset, facts in ogbench.COLLECTED.items()
}


# --- generated here: balls in mazes by D4RL's controller ---

# D4RL's (v1) of all mazes but the open one, which its figures do not fit. Of 1,000 episodes here
# uniform actions score 4, 5, 2, 0, 2 and 3, and the shortest way to the goal, then staying there,
# 144, 133, 157, 157, 209 and 203: D4RL's maximum is no bound. In the open maze these are 0 and 100.
MAZE2D_REFERENCES = {
    "open-sparse": Reference(9.036, 105.64),
    "open-dense": Reference(39.42, 116.374),
    "umaze-sparse": Reference(23.85, 161.86),
    "umaze-dense": Reference(68.537689, 193.66285642381482),
    "medium-sparse": Reference(13.13, 277.39),
    "medium-dense": Reference(44.264742, 297.4552547777125),
    "large-sparse": Reference(6.7, 273.99),
    "large-dense": Reference(30.569041, 303.4857382709002),
}
_MAZES = {  # D4RL's numbers of steps, and the longest episode
    "open": (1_000_000, 150),
    "umaze": (1_000_000, 300),
    "medium": (2_000_000, 600),
    "large": (4_000_000, 800),
}
LOCAL_MAZE2D = {
    f"maze2d-{maze}-{reward}": Local(
        num_episodes=0,
        horizon=horizon,
        reference=MAZE2D_REFERENCES[f"{maze}-{reward}"],
        action=BoundedActions((-1.0, -1.0), (1.0, 1.0)),
        num_steps=steps,
        behavior="D4RL's controller, the shortest way to random goals",
        variants=("steps", "seed"),
        simulator=f"maze2d/{maze}-{reward}",
    )
    for maze, (steps, horizon) in _MAZES.items()
    for reward in ("sparse", "dense")
}


def local(environment: str) -> Local | None:
    """The dataset `local/<environment>`, for example of `atari/Pong`; None if there is none."""
    tables = (
        LOCAL,
        LOCAL_RANDOM,
        LOCAL_ATARI,
        LOCAL_CONTROL,
        LOCAL_MUJOCO,
        LOCAL_OGBENCH,
        LOCAL_MAZE2D,
    )
    return next((table[environment] for table in tables if environment in table), None)
