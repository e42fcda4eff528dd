"""When and where a model can be trusted: errors by horizon, calibration, penalties, a map."""

from offline_mbrl.selection.diagnose.coverage import Calibration, calibration
from offline_mbrl.selection.diagnose.horizons import HorizonErrors, horizon_errors, trusted_steps
from offline_mbrl.selection.diagnose.maps import TrustMap, chosen, principal, trust_map
from offline_mbrl.selection.diagnose.pictures import draw
from offline_mbrl.selection.diagnose.ranks import Correlation
from offline_mbrl.selection.diagnose.report import Diagnosis, Settings, diagnose, to_json
from offline_mbrl.selection.diagnose.single_steps import (
    OneStep,
    best_penalty,
    one_step,
    penalties_of,
    rank_correlations,
)
from offline_mbrl.selection.diagnose.wording import advice

__all__ = [
    "Calibration",
    "Correlation",
    "Diagnosis",
    "HorizonErrors",
    "OneStep",
    "Settings",
    "TrustMap",
    "advice",
    "best_penalty",
    "calibration",
    "chosen",
    "diagnose",
    "draw",
    "horizon_errors",
    "one_step",
    "penalties_of",
    "principal",
    "rank_correlations",
    "to_json",
    "trust_map",
    "trusted_steps",
]
