"""Published figures beside which runs are put: scores in percent, with the version of the data.

Gym locomotion: the table of the CBOP paper (arXiv:2210.03802), whose columns of TD3+BC and CQL are
those of the methods' own papers on v0 data, and those of EDAC and IQL on v2 data; the column of
EDAC is the better of SAC-N and EDAC a dataset. OGBench: success rates of arXiv:2502.02538, mean of
five tasks, data of 1M steps.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A score in percent."""

    score: float
    data: str  # version


_GYM = {
    "td3_bc": ("v0", (42.8, 99.5, 79.7, 43.3, 31.4, 25.2, 97.9, 112.2, 101.1)),
    "edac": ("v2", (67.5, 101.6, 92.5, 63.9, 101.8, 87.1, 107.1, 110.7, 114.7)),
    "iql": ("v2", (47.4, 66.2, 78.3, 44.2, 94.7, 73.8, 86.7, 91.5, 109.6)),
}
_DATASETS = [
    f"{task}-{kind}"
    for kind in ("medium", "medium-replay", "medium-expert")
    for task in ("halfcheetah", "hopper", "walker2d")
]
_CUBE = {"iql": 83.0, "rebrac": 91.0, "fql": 96.0}
FIGURES = {
    **{
        (arm, dataset): Published(score, version)
        for arm, (version, scores) in _GYM.items()
        for dataset, score in zip(_DATASETS, scores, strict=True)
    },
    **{
        (arm, f"cube-single-play-singletask-task{number}"): Published(score, "mean of 5 tasks")
        for arm, score in _CUBE.items()
        for number in range(1, 6)
    },
}


def shown(arm: str, dataset: str) -> str:
    """The published score of an arm on an official dataset, and its data's version; or a dash."""
    figure = FIGURES.get((arm, dataset))
    return f"{figure.score:g} ({figure.data})" if figure else "-"
