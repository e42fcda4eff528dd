"""ROSMO: a latent model whose policy regresses to its own one-step lookahead, held near the data.

Paper: "Efficient Offline Policy Optimization with a Learned Model" (arXiv:2210.05980). Its own
equation, here: the behavior term `-log pi(a | s) H(advantage)` on the data's actions. The lookahead
is `planning.one_step`; targets, loss and update are `latent`'s.

Where the paper and its released code disagree, each choice is a setting; `published` is the
default, and the preset `released` gives the code's behavior:
* `behavior_advantage`: from the model (published), or from encoded real frames ("encoded_next",
  released; it reads a reward head that is trained on unrolled embeddings alone). "data_td" uses the
  logged reward; neither source has it.
* `behavior_at_zero`: the behavior term at an advantage of exactly 0: on (published) or off
  (released).
* `bootstrap_on_truncation`: the release takes every end of an episode for a terminal.
* `start_on_final`: the release lets windows start on an episode's last record.
* `model.num_bins`: 20 in the release, which makes the support lopsided and the first values 1.246.
The preset `atari` has the published equation in the release's sizes for Atari (K = n = 5 and 601
bins), `released_atari` the code's behavior in them (`experiment/atari` of `sail-sg/rosmo`); all
else is alike in its two suites and the default. With an odd number of bins advantages start at 0,
so that the code clones nothing at first. `sampled` looks ahead at 4 sampled actions instead of at
all, as the low-budget comparison on Atari does.
Departures from both: see `latent`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from offline_mbrl import settings
from offline_mbrl.algorithms import advantages, latent, operators
from offline_mbrl.models import muzero
from offline_mbrl.settings import Scope, at_least, between, read_if
from offline_mbrl.targets import weights
from offline_mbrl.types import (
    Array,
    EnvironmentSpec,
    Learner,
    Params,
    Plan,
    Planner,
    PyTree,
    Trajectory,
)
from offline_mbrl.types import num_actions as require_discrete


def _has_behavior_term(scope: Scope) -> bool:
    return scope.config.behavior_coef != 0


if_behavior = read_if(_has_behavior_term, "behavior_coef above 0")


@dataclass(frozen=True)
class Config(latent.Config):
    """The family's settings, and the behavior term's."""

    behavior_coef: Annotated[float, at_least(0)] = 0.2
    behavior_advantage: Annotated[Literal["model", "encoded_next", "data_td"], if_behavior] = (
        "model"
    )
    behavior_at_zero: Annotated[float, between(0, 1), if_behavior] = 1.0  # H(0)


_RELEASED = {
    "behavior_advantage": "encoded_next",
    "behavior_at_zero": 0.0,
    "bootstrap_on_truncation": False,
    "start_on_final": True,
}
_ATARI = {"unroll_steps": 5, "td_steps": 5, "model": muzero.ModelConfig(num_bins=601)}
PRESETS = {
    "published": {},
    "released": {**_RELEASED, "model": muzero.ModelConfig(num_bins=20)},
    "atari": _ATARI,
    "released_atari": {**_RELEASED, **_ATARI},
    "sampled": {"search": operators.SearchConfig(operator="one_step_sampled", num_simulations=4)},
}


def make(config: Config, spec: EnvironmentSpec, *, planner: Planner | None = None) -> Learner:
    """The learner.

    Args:
      config: settings.
      spec: shapes; actions must be discrete.
      planner: puts another improvement operator in the place of the one that `config.search` names.

    Raises:
      UsageError: continuous actions, or settings that contradict each other.
    """
    require_discrete(spec, "rosmo")
    settings.require_valid(config, "rosmo", spec)
    if config.behavior_coef == 0:
        return latent.make(config, spec, caller="rosmo", planner=planner)
    is_exact = config.search.operator == "one_step" and planner is None
    if config.behavior_advantage == "model" and is_exact:
        advantage = advantages.planned
    else:
        model = muzero.make(config.model, spec)
        advantage = advantages.make(config.behavior_advantage, model, config.gamma)

    def clone(
        params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
    ) -> Array:
        advantages_of_data = advantage(params, embeddings, trajectory, plan, values)
        return weights.indicator(advantages_of_data, at_zero=config.behavior_at_zero)

    return latent.make(
        config,
        spec,
        caller="rosmo",
        clone=clone,
        behavior_coef=config.behavior_coef,
        planner=planner,
    )
