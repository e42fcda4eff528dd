"""Splits of a dataset, and a choice of its transitions by their returns; columns are shared."""

import numpy as np

from offline_mbrl.data import monte_carlo
from offline_mbrl.data.memory import Dataset
from offline_mbrl.types import UsageError


def hold_out(
    dataset: Dataset,
    *,
    fraction: float = 0.1,
    most: int | None = None,
    by: str = "transition",
    seed: int = 0,
) -> Dataset:
    """Holds out transitions: their rows move from `starts` to `held_out`, columns are shared.

    Args:
      dataset: on the host.
      fraction: share of the transitions, or of the episodes.
      most: upper limit of the number of held-out transitions (`transition` only).
      by: `transition`, uniform over transitions, comparable to independent held-out samples; or
        `episode`, whole episodes, at least 5 where there are 10 or more.
      seed: seed of the choice.

    Returns:
      The same columns with other `starts` and `held_out`.

    Raises:
      UsageError: `by` is unknown, the fraction is not inside (0, 1), or one side would be empty.
    """
    if by not in ("transition", "episode") or not 0 < fraction < 1:
        raise UsageError(
            f"hold_out takes by='transition' or 'episode' and a fraction inside (0, 1), got {by!r} "
            f"and {fraction}"
        )
    starts = np.asarray(dataset.starts)
    rng = np.random.default_rng([seed, 5])
    unit = np.arange(len(starts)) if by == "transition" else np.asarray(dataset.episode_end)[starts]
    units = np.unique(unit)
    count = int(fraction * len(units))
    if by == "episode":
        count = max(count, 5 if len(units) >= 10 else 1)
    elif most is not None:
        count = min(count, most)
    if not 0 < count < len(units):
        raise UsageError(
            f"hold_out: {count} of {len(units)} {by}s would be held out; both sides need one"
        )
    is_held_out = np.isin(unit, rng.choice(units, count, replace=False))
    return dataset._replace(starts=starts[~is_held_out], held_out=starts[is_held_out])


def weighted_by_return(dataset: Dataset, *, seed: int = 0, copies: int = 4) -> Dataset:
    """The dataset with transitions of better episodes more often in `starts`, columns shared.

    The weight of a transition is its episode's return between the lowest and the highest, which
    weigh 0 and 1. Rows of weight w stand `copies w / mean w` times in `starts` on average, never a
    whole time off, so that samplers that are uniform over `starts` are weighted by return. Where
    all returns are equal the dataset is returned as it is.

    Args:
      dataset: on the host.
      seed: of the remainders, which are drawn by one offset for all (systematic resampling).
      copies: of a transition on average; more of them make smaller steps between weights.

    Source: ROMI's released code, with replacement.
    """
    returns, episode = monte_carlo.episode_returns(dataset)
    low = returns.min()
    width = returns.max() - low
    if width == 0:
        return dataset
    weights = ((returns - low) / width)[episode]
    expected = copies * len(weights) * np.cumsum(weights) / np.sum(weights)
    offset = np.random.default_rng([seed, 6]).random()
    counts = np.diff(np.floor(expected + offset), prepend=np.floor(offset)).astype(np.int64)
    return dataset._replace(starts=np.repeat(np.asarray(dataset.starts[:]), counts))
