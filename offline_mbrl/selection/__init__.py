"""Selection of policies by logged data: estimators by name, judgement, metrics of estimators."""

from offline_mbrl.selection.calibration import Calibration, calibrate
from offline_mbrl.selection.estimators import GROUPS, prepare
from offline_mbrl.selection.judging import Judged, Judgement, judge
from offline_mbrl.selection.records import Data, Settings
from offline_mbrl.selection.wording import advice

__all__ = [
    "GROUPS",
    "Calibration",
    "Data",
    "Judged",
    "Judgement",
    "Settings",
    "advice",
    "calibrate",
    "judge",
    "prepare",
]
