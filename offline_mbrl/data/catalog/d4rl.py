"""Facts of D4RL's datasets by their exact names: references, episodes, simulators, meaning of rows.

A dataset has up to three names: D4RL's own (`hopper-medium-v2`), TFDS's
(`d4rl_mujoco_hopper/v2-medium`) and that of the file that D4RL's package downloads
(`hopper_medium-v2.hdf5`). Names are compared whole: a part of a name decides nothing.

Sources: the released package (`infos.py` for references and files, the registered environments for
time limits, `scripts/generation` for the meaning of rows) and its issues 77 (AntMaze v0's
timeouts), 85 and 194 (Maze2D's timeouts and rewards), 199 (AntMaze's terminals).
"""

from collections.abc import Iterator
from typing import NamedTuple

from offline_mbrl.data.catalog.reference import Reference


class Official(NamedTuple):
    """An official dataset."""

    name: str  # D4RL's own
    file: str  # D4RL's file, without its suffix
    tfds: str  # empty where TFDS has no such dataset
    family: str  # mujoco, antmaze, adroit, maze2d, kitchen
    reference: Reference
    horizon: int = 0  # steps after which an episode without a terminal was cut; 0: not fixed
    simulator: str | None = None


# --- references: D4RL's, to the last digit ---

MUJOCO_REFERENCES = {
    "ant": Reference(-325.6, 3879.7),
    "halfcheetah": Reference(-280.178953, 12135.0),
    "hopper": Reference(-20.272305, 3234.3),
    "walker2d": Reference(1.629008, 4592.3),
}
ANTMAZE_REFERENCE = Reference(0.0, 1.0)
ADROIT_REFERENCES = {
    "door": Reference(-56.512833, 2880.5693087298737),
    "hammer": Reference(-274.856578, 12794.134825156867),
    "pen": Reference(96.262799, 3076.8331017826877),
    "relocate": Reference(-6.425911, 4233.877797728884),
}
MAZE2D_REFERENCES = {  # the two versions differ in their time limits, and so in their scales
    "large-dense-v0": Reference(27.388310, 215.09965671563742),
    "large-dense-v1": Reference(30.569041, 303.4857382709002),
    "large-v0": Reference(4.83, 191.99),
    "large-v1": Reference(6.7, 273.99),
    "medium-dense-v0": Reference(19.477620, 96.03474232952358),
    "medium-dense-v1": Reference(44.264742, 297.4552547777125),
    "medium-v0": Reference(5.77, 85.14),
    "medium-v1": Reference(13.13, 277.39),
    "open-dense-v0": Reference(11.17817, 27.166538620695782),
    "open-v0": Reference(0.01, 20.66),
    "umaze-dense-v0": Reference(23.249793, 81.78995240126592),
    "umaze-dense-v1": Reference(68.537689, 193.66285642381482),
    "umaze-v0": Reference(0.94, 62.6),
    "umaze-v1": Reference(23.85, 161.86),
}
KITCHEN_REFERENCE = Reference(0.0, 4.0)

# --- the families ---

# The data are from gym's v2 tasks; gymnasium's v4 tasks equal them except in Ant's observations.
SIMULATORS = {
    "ant": None,
    "halfcheetah": "gym/HalfCheetah-v4",
    "hopper": "gym/Hopper-v4",
    "walker2d": "gym/Walker2d-v4",
}
MUJOCO_HORIZON = 1000
_FIRST = ("expert", "medium", "medium-expert", "mixed", "random")  # mixed: later medium-replay
_LATER = ("expert", "full-replay", "medium", "medium-expert", "medium-replay", "random")
_MAZES = {  # variant: D4RL's file of v0; v2 has the same name with `_fixed`
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
}
_ADROIT_FILES = {  # of v0; v1's are named as the datasets are
    "human": "{}-v0_demos_clipped",
    "cloned": "{}-demos-v0-bc-combined",
    "expert": "{}-v0_expert_clipped",
}
_ADROIT_HORIZONS = {"door": 200, "hammer": 200, "pen": 100, "relocate": 200}
_KITCHENS = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
    "partial": "kitchen_microwave_kettle_light_slider-v0",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
}

# An ant moves less than this far in a step (0.1 seconds); rows farther apart do not follow.
ANTMAZE_STRIDE = 1.0

SEMANTICS = {
    "mujoco": ("rewards and terminals belong to the next state; timeouts are time limits",),
    "antmaze": (
        "reward 1 and terminal where the next state is at the goal, 0 elsewhere; the shift by -1 "
        "that some methods train on is a setting of the learner",
        "the files' episodes go on after the goal, so that terminals stand in rows",
        "no simulator: D4RL's mazes are not among gymnasium's tasks",
    ),
    "adroit": (
        "rewards belong to the next state; timeouts end demonstrations and episodes, terminals "
        "are pens that fell",
        "no simulator: Adroit's hands are not among gymnasium's tasks",
    ),
    "maze2d": (
        "rewards belong to the state in which the action is chosen, not to the next one",
        "a single long walk without terminals: timeouts mark the arrivals at changing goals",
        "no simulator: D4RL's mazes are not among gymnasium's tasks",
    ),
    "kitchen": (
        "rewards belong to the state in which the action is chosen; terminals mark the last row of "
        "every demonstration, whether or not its tasks are complete",
        "no simulator: the kitchen is not among gymnasium's tasks",
    ),
}
ANT_WITHOUT_SIMULATOR = "no simulator: gymnasium's Ant has other observations"


def semantics(dataset: Official) -> list[str]:
    """Sentences on what the dataset's rows mean, and why its policies cannot be played here."""
    is_ant = dataset.family == "mujoco" and dataset.simulator is None
    return [*SEMANTICS[dataset.family], *([ANT_WITHOUT_SIMULATOR] if is_ant else [])]


def by_file(stem: str) -> Official | None:
    """The dataset of a file's name without suffix, D4RL's name or its file's; None without one."""
    return _BY_FILE.get(stem)


def _mujoco() -> Iterator[Official]:
    for task, reference in MUJOCO_REFERENCES.items():
        for version, kinds in (("v0", _FIRST), ("v1", _LATER), ("v2", _LATER)):
            for kind in kinds:
                file = f"{task}_{kind}".replace("-", "_")
                short = "walker_mixed" if file == "walker2d_mixed" else file
                yield Official(
                    name=f"{task}-{kind.replace('mixed', 'medium-replay')}-{version}",
                    file=short if version == "v0" else f"{file}-{version}",
                    tfds=f"d4rl_mujoco_{task}/{version}-{kind}",
                    family="mujoco",
                    reference=reference,
                    horizon=MUJOCO_HORIZON,
                    simulator=SIMULATORS[task],
                )


def _antmaze() -> Iterator[Official]:
    for version, ending in (("v0", ""), ("v2", "_fixed")):
        for variant, file in _MAZES.items():
            yield Official(
                name=f"antmaze-{variant}-{version}",
                file=f"Ant_maze_{file}_sparse{ending}",
                tfds=f"d4rl_antmaze/{variant}-{version}",
                family="antmaze",
                reference=ANTMAZE_REFERENCE,
            )


def _adroit() -> Iterator[Official]:
    for task, reference in ADROIT_REFERENCES.items():
        for version in ("v0", "v1"):
            for kind, file in _ADROIT_FILES.items():
                name = f"{task}-{kind}-{version}"
                yield Official(
                    name=name,
                    file=file.format(task) if version == "v0" else name,
                    tfds=f"d4rl_adroit_{task}/{version}-{kind}",
                    family="adroit",
                    reference=reference,
                    horizon=_ADROIT_HORIZONS[task] if kind == "expert" else 0,
                )


def _others() -> Iterator[Official]:
    """Maze2D and the kitchen, which TFDS does not have."""
    for variant, reference in MAZE2D_REFERENCES.items():
        task, _, version = variant.rpartition("-")
        kind = task if task.endswith("-dense") else f"{task}-sparse"
        yield Official(
            name=f"maze2d-{variant}",
            file=f"maze2d-{kind}" + ("" if version == "v0" else f"-{version}"),
            tfds="",
            family="maze2d",
            reference=reference,
        )
    for variant, file in _KITCHENS.items():
        yield Official(
            name=f"kitchen-{variant}-v0",
            file=file,
            tfds="",
            family="kitchen",
            reference=KITCHEN_REFERENCE,
        )


OFFICIAL = (*_mujoco(), *_antmaze(), *_adroit(), *_others())
BY_TFDS = {dataset.tfds: dataset for dataset in OFFICIAL if dataset.tfds}
_BY_FILE = {name: dataset for dataset in OFFICIAL for name in (dataset.name, dataset.file)}
