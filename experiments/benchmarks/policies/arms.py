"""The learners of the benchmark, each with settings of its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Arm(NamedTuple):
    """A learner with settings."""

    algorithm: str
    preset: str = ""  # of the algorithm; empty: the one that is named like the dataset, if any
    changes: Mapping[str, Any] = {}  # dotted setting -> value, after all others


CLONING = "bc"  # what every other arm is compared with
MODEL_FREE = {
    "bc": Arm("bc"),
    "percentile_bc": Arm("percentile_bc"),
    "bail": Arm("bail"),
    "sac": Arm("sac"),
    "td3_bc": Arm("td3_bc"),
    "rebrac": Arm("rebrac"),
    "sac_n": Arm("edac", preset="sac_n"),
    "edac": Arm("edac"),
    "iql": Arm("iql"),
    "cql": Arm("cql"),
    "crr": Arm("crr", preset="exponential"),
    "awac": Arm("crr", preset="awac"),
    "bcq": Arm("bcq"),
    "bear": Arm("bear"),
    "brac_p": Arm("brac", preset="policy"),
    "brac_v": Arm("brac", preset="value"),
    "fql": Arm("fql"),
}

# --- MOPO: what the penalty weighs, and which it is ---

COEFS = (0.0, 0.2, 1.0, 5.0, 25.0)
SWEEP = {f"mopo_coef_{coef:g}": Arm("mopo", changes={"penalty_coef": coef}) for coef in COEFS}
PENALIZED = {
    f"mopo_{penalty}": Arm("mopo", changes={"penalty": penalty, "penalty_coef": 1.0})
    for penalty in (
        "max_centroid_disagreement",
        "max_pairwise_disagreement",
        "ensemble_std",
        "mixture_std",
    )
}

# --- CBOP: how depths are weighted, how cautious it is, and how noisy the model ---

NOISES = (0.0, 0.1, 0.3, 1.0)
NOISY = {
    "cbop" if noise == 0 else f"cbop_noise_{noise:g}": Arm(
        "cbop", preset="cpu", changes={"model_noise": noise}
    )
    for noise in NOISES
}
EXPANDED = {
    "cbop_psi_0": Arm("cbop", preset="cpu", changes={"psi": 0.0}),
    "cbop_geometric": Arm("cbop", preset="cpu", changes={"weighting": "geometric"}),
    "cbop_last": Arm("cbop", preset="cpu", changes={"weighting": "last"}),
    "mve": Arm("cbop", preset="cpu", changes={"weighting": "last", "psi": 0.0}),
    "lcb": Arm("cbop", preset="cpu", changes={"horizon": 0}),
}
WITH_MODELS = {
    **SWEEP,
    **PENALIZED,
    "mbpo": Arm("mbpo"),
    "morel": Arm("morel", changes={"imagination.num_starts": 500, "imagination.horizon": 50}),
    "combo": Arm("combo"),
    "mobile": Arm("mobile"),
    "rambo": Arm("rambo"),
    **NOISY,
    **EXPANDED,
}
ARMS = {**MODEL_FREE, **WITH_MODELS, "mopo": Arm("mopo")}
