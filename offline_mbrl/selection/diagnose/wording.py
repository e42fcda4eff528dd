"""A diagnosis in plain sentences: how far to roll out, what to doubt, which penalty to use."""

import numpy as np

from offline_mbrl.selection.diagnose.coverage import Calibration
from offline_mbrl.selection.diagnose.horizons import HorizonErrors, trusted_steps
from offline_mbrl.selection.diagnose.ranks import CONFIDENCE, Correlation
from offline_mbrl.selection.diagnose.report import Diagnosis, SourceDiagnosis
from offline_mbrl.selection.diagnose.single_steps import best_penalty

EXACT = 1e-3  # standard deviations: an error below this is none
TOLERANCE = 0.05  # of coverage
BIASED = 0.1  # standard deviations of the logged returns
USEFUL = 0.2  # a rank correlation below this says little


def advice(diagnosis: Diagnosis) -> list[str]:
    """Sentences, those of each source after its name, then what could not be judged."""
    lines = [
        f"{name}: {sentence}"
        for name, source in diagnosis.sources.items()
        for sentence in _of_source(source)
    ]
    return [*lines, *_expected_horizon(diagnosis), *diagnosis.notes]


def _of_source(source: SourceDiagnosis) -> list[str]:
    return [
        *_reach(source.errors),
        *_returns(source.errors),
        *_ends(source.errors),
        _calibration(source.calibration),
        _penalties(source.correlations),
    ]


def _reach(errors: HorizonErrors) -> list[str]:
    """Up to how many steps the model predicts better than no model."""
    longest = int(np.count_nonzero(errors.num_windows))
    if not longest:
        return ["no step could be judged"]
    trusted = trusted_steps(errors)
    if np.nanmax(errors.error) <= EXACT:
        return [f"the model's error is below {EXACT:g} standard deviations up to {longest} steps"]
    sentences = []
    if errors.error[0] >= errors.unchanged_error[0]:
        sentences.append("one step ahead it predicts no better than that nothing changes")
    if trusted == longest:
        sentences.append(
            f"up to {longest} steps, the longest judged, the model's error stays below that of "
            "predicting the mean"
        )
    elif trusted:
        sentences.append(
            f"beyond {trusted} steps the model's error exceeds that of predicting the mean: roll "
            "out no further"
        )
    else:
        sentences.append("even one step ahead its error exceeds that of predicting the mean")
    return sentences


def _returns(errors: HorizonErrors) -> list[str]:
    """The bias of returns over the longest horizon that is trusted."""
    steps = max(trusted_steps(errors), 1)
    bias = errors.return_bias[steps - 1]
    std = errors.return_std[steps - 1]
    if not abs(bias) > BIASED * std or abs(bias) <= EXACT:  # NaN, too
        return []
    too = "too high" if bias > 0 else "too low"
    relative = f", {abs(bias) / std:.2g} of their standard deviation" if std > 0 else ""
    return [f"returns of {steps} steps are {abs(bias):.3g} {too} on average{relative}"]


def _ends(errors: HorizonErrors) -> list[str]:
    last = int(np.flatnonzero(errors.num_windows)[-1]) if errors.num_windows.any() else 0
    sentences = []
    if errors.diverged[last] > 0:
        share = errors.diverged[last]
        sentences.append(f"{share:.0%} of its rollouts of {last + 1} steps are not finite")
    early = errors.ended[last] - errors.diverged[last]
    if early > TOLERANCE:
        sentences.append(f"it ends {early:.0%} of episodes that went on for {last + 1} steps")
    return sentences


def _calibration(calibration: Calibration) -> str:
    row = int(np.argmin(np.abs(calibration.level - 0.9)))
    level = calibration.level[row]
    coverage = calibration.coverage[row]
    held = f"its {level:.0%} intervals hold {coverage:.0%} of outcomes"
    if min(calibration.gap, coverage - level) < -TOLERANCE:
        return f"{held}: it is overconfident"
    if calibration.gap > TOLERANCE:
        return f"{held}: it is less certain than it could be"
    return f"{held}: it is calibrated"


def _penalties(correlations: dict[str, Correlation]) -> str:
    best = best_penalty(correlations)
    if best is None:
        return "no penalty could be compared with the true errors"
    name, rank = best
    if rank.value < USEFUL:
        return f"no penalty ranks its true errors (the best, {name}: {rank.value:.2f})"
    ranked = f"of the penalties {name} ranks its true errors best ({rank.value:.2f})"
    if not np.isfinite(rank.low):
        return f"{ranked}; episodes are too few for an interval"
    interval = f"{ranked}, {CONFIDENCE:.0%} interval {rank.low:.2f} to {rank.high:.2f}"
    return interval if rank.low > 0 else f"{interval}: it may be chance"


def _expected_horizon(diagnosis: Diagnosis) -> list[str]:
    rows = diagnosis.expected_horizon
    if not rows:
        return []
    first, last = (
        np.mean([row["value"] for row in rows if row["step"] == step])
        for step in (rows[0]["step"], rows[-1]["step"])
    )
    return [f"its targets looked {first:.2g} steps ahead at first and {last:.2g} at the end"]
