"""Selection of policies by logged data: estimators by name, judgement, metrics of estimators."""

from offline_mbrl.selection.estimators import GROUPS, prepare
from offline_mbrl.selection.judging import Judged, advice, judge
from offline_mbrl.selection.records import Data, Settings

__all__ = ["GROUPS", "Data", "Judged", "Settings", "advice", "judge", "prepare"]
