"""A judgement as tables for a terminal, and as a folder: page, pictures, CSV and JSON."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from offline_mbrl import files
from offline_mbrl.ope import intervals
from offline_mbrl.runs import folder
from offline_mbrl.selection import pictures, wording
from offline_mbrl.selection.calibration import Calibration
from offline_mbrl.selection.judging import Judged, Judgement
from offline_mbrl.selection.records import Data
from offline_mbrl.types import Estimate, UsageError

# Diagnostics that are shown beside an estimate.
SIGNS = {"low_support": "low", "updates_too_few": "short"}


def table(judgement: Judgement, dataset: str, data: Data) -> Table:
    """The behavior, then a line a policy, first choice first.

    Args:
      judgement: of all policies.
      dataset: its name.
      data: discount factor and horizon of the estimates.
    """
    shown = Table(
        title=f"discounted returns by {dataset}, gamma {data.gamma:g}, {data.horizon} steps",
        caption="95 % intervals; > behavior, best: probabilities; regret: what the best has more, "
        "on average;\nundiscounted: the mean return, of policies in the models",
    )
    heads, *lines = rows(judgement)
    for index, head in enumerate(heads):
        shown.add_column(head, justify="right" if index not in (0, 5) else "left")
    for row in lines:
        shown.add_row(*row)
    return shown


def rows(judgement: Judgement) -> list[list[str]]:
    """The cells of `table`, its heads first.

    With distributional values there is a column of the mean of the worst tenth of the returns.
    """
    heads = ["policy", "value", "> behavior", "best", "regret", "votes", "undiscounted"]
    behavior = judgement.behavior
    value = _interval(behavior.within_horizon)
    logged = ["logged behavior", value, "", "", "", "", wording.number(behavior.undiscounted)]
    lines = [_row(policy) for policy in judgement.policies]
    worst = [_diagnostic(policy, "cvar_10") for policy in judgement.policies]
    if any(cell != "-" for cell in worst):
        heads.append("worst 10 %")
        logged.append(wording.number(_worst_logged(behavior.continuing)))
        lines = [[*line, cell] for line, cell in zip(lines, worst, strict=True)]
    return [heads, logged, *lines]


def _worst_logged(behavior: Estimate) -> float:
    """The mean of the worst tenth of the logged returns."""
    returns = np.sort(np.asarray(behavior.per_episode))
    return float(np.mean(returns[: max(1, round(0.1 * len(returns)))]))


def _row(policy: Judged) -> list[str]:
    undiscounted = _diagnostic(policy, "undiscounted")
    if policy.standing is None:
        return [policy.name, "-", "-", "-", "-", "none may vote", undiscounted]
    standing = policy.standing
    half = 0.5 * (standing.high - standing.low)
    return [
        policy.name,
        f"{wording.number(standing.value)} ± {wording.number(half)}",
        f"{standing.better:.0%}",
        f"{standing.best:.0%}",
        wording.number(standing.regret),
        ", ".join(policy.votes.values()),
        undiscounted,
    ]


def _diagnostic(policy: Judged, name: str) -> str:
    """Of the first estimator that has it."""
    for estimate in policy.estimates.values():
        if name in estimate.diagnostics:
            return wording.number(float(estimate.diagnostics[name]))
    return "-"


def all_estimates(judgement: Judgement) -> Table:
    """A line for every policy and estimator."""
    shown = Table(
        title="all estimates",
        caption="low: the data do not support the policy by that estimator; short: its fit has not "
        "settled; neither votes. Models and importance weights end with the horizon, fitted values "
        "and ratios only at true terminals.",
    )
    for index, head in enumerate(("policy", "estimator", "value", "")):
        shown.add_column(head, justify="right" if index == 2 else "left")
    for policy in judgement.policies:
        for name, estimate in policy.estimates.items():
            shown.add_row(policy.name, name, _interval(estimate), " ".join(_marks(estimate)))
    return shown


def calibration_table(calibrated: Calibration) -> Table:
    """A line an estimator: how it did on clones of parts of the log."""
    shown = Table(
        title=f"estimators on clones of {len(calibrated.names)} parts of the log",
        caption="hold: 95 % intervals that hold the part's logged return; bias: mean of estimate "
        "minus it;\nmay vote: share of the parts on which it may. A clone can be worse than what "
        "it imitates.",
    )
    for index, head in enumerate(("estimator", "hold", "rank correlation", "bias", "may vote")):
        shown.add_column(head, justify="right" if index else "left")
    for row in calibration_rows(calibrated):
        shown.add_row(*row)
    return shown


def calibration_rows(calibrated: Calibration) -> list[list[str]]:
    """The cells of `calibration_table`."""
    return [
        [
            name,
            f"{own.coverage:.0%}",
            f"{own.rank_correlation:.2f}",
            wording.number(own.bias),
            f"{own.may_vote:.0%}",
        ]
        for name, own in calibrated.estimators.items()
    ]


def described(judgement: Judgement, calibrated: Calibration | None) -> dict[str, Any]:
    """What JSON holds of both."""
    contents = wording.to_json(judgement)
    if calibrated is not None:
        contents["calibration"] = {
            name: own._asdict() for name, own in calibrated.estimators.items()
        }
    return contents


def _marks(estimate: Estimate) -> list[str]:
    return [mark for sign, mark in SIGNS.items() if float(estimate.diagnostics.get(sign, 0)) > 0]


def _interval(estimate: Estimate) -> str:
    half_width = intervals.NORMAL_95 * float(estimate.stderr)
    return f"{wording.number(float(estimate.value))} ± {wording.number(half_width)}"


# --- what is written ---


def write(
    place: Path,
    judgement: Judgement,
    dataset: str,
    data: Data,
    calibrated: Calibration | None = None,
) -> None:
    """The page, its pictures, all estimates as CSV and everything as JSON, each file whole.

    Args:
      place: folder; made where it is missing.
      judgement: of all policies.
      dataset: its name.
      data: discount factor and horizon of the estimates.
      calibrated: how the estimators did on the log's own policies, if that was measured.

    Raises:
      UsageError: the folder cannot be written.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {place}: {error.strerror}; choose --out") from error
    drawn = pictures.draw(judgement, place)
    folder.write_json(place / "judgement.json", described(judgement, calibrated))
    _write_csv(place / "estimates.csv", judgement)
    text = _page(judgement, dataset, data, [path.name for path in drawn])
    if calibrated is not None:
        heads = [str(column.header) for column in calibration_table(calibrated).columns]
        lines = [heads, ["---"] * len(heads), *calibration_rows(calibrated)]
        text += "\n".join(
            ["", "## Estimators on clones of parts of the log", "", *_markdown(lines), ""]
        )
    files.write_whole(place / "README.md", lambda temporary: temporary.write_text(text))


def _page(judgement: Judgement, dataset: str, data: Data, drawn: Sequence[str]) -> str:
    heads, *others = rows(judgement)
    lines = [heads, ["---"] * len(heads), *others]
    return "\n".join(
        [
            f"# Which policy to deploy, by {dataset}",
            "",
            f"Discount factor {data.gamma:g}, {data.horizon} steps; 95 % intervals.",
            "",
            *(f"{sentence}  " for sentence in wording.advice(judgement).splitlines()),
            "",
            *_markdown(lines),
            "",
            *(f"![{name}]({name})" for name in drawn),
            "",
        ]
    )


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in lines]


def _write_csv(path: Path, judgement: Judgement) -> None:
    """All estimates, a line for each policy and estimator."""
    lines: list[list[Any]] = [
        ["policy", "estimator", "value", "stderr", "low_support", "unsettled", "votes"]
    ]
    for policy in judgement.policies:
        for name, estimate in policy.estimates.items():
            flags = [float(estimate.diagnostics.get(flag, np.nan)) for flag in intervals.FLAGS]
            numbers = [float(estimate.value), float(estimate.stderr), *flags]
            lines.append([policy.name, name, *numbers, name in policy.votes.values()])

    def save(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)

    files.write_whole(path, save)
