"""ROSMO: a latent model whose policy regresses to its own one-step lookahead, kept close to the data where it pays.

Paper: "Efficient Offline Policy Optimization with a Learned Model" (arXiv:2210.05980). Its own equation, here: the
behavior term `-log pi(a | s) H(advantage)` on the data's actions. The lookahead is `planning.one_step`; targets, loss
and update are `latent`'s.

Where the paper and its released code disagree, each choice is a setting; `published` is the default, and the preset
`released` gives the code's behavior:
* `behavior_advantage`: from the model (published), or from encoded real frames ("encoded_next", released; it reads a
  reward head that is trained on unrolled embeddings alone). "data_td" uses the logged reward; neither source has it.
* `behavior_at_zero`: the behavior term at an advantage of exactly 0: on (published) or off (released).
* `bootstrap_on_truncation`: the release takes every end of an episode for a terminal.
* `start_on_final`: the release lets windows start on an episode's last record.
* `model.num_bins`: 20 in the release, which makes the support lopsided and the first values 1.246.
The preset `atari` has the release's sizes for Atari. `sampled` looks ahead at 4 sampled actions instead of at all, as
the low-budget comparison on Atari does.
Departures from both: see `latent`.
"""

from dataclasses import dataclass
from typing import Literal

from offline_mbrl.algorithms import advantages, latent, operators
from offline_mbrl.models import muzero
from offline_mbrl.targets import weights
from offline_mbrl.types import Array, EnvironmentSpec, Learner, Plan, Planner, PyTree, Trajectory, num_actions


@dataclass(frozen=True)
class Config(latent.Config):
    """The family's settings, and the behavior term's."""

    behavior_coef: float = 0.2
    behavior_advantage: Literal["model", "encoded_next", "data_td"] = "model"
    behavior_at_zero: float = 1.0  # H(0)


PRESETS = {
    "published": {},
    "released": {
        "behavior_advantage": "encoded_next", "behavior_at_zero": 0.0, "bootstrap_on_truncation": False,
        "start_on_final": True, "model": muzero.ModelConfig(num_bins=20),
    },
    "atari": {"unroll_steps": 5, "td_steps": 5, "model": muzero.ModelConfig(num_bins=601)},
    "sampled": {"search": operators.SearchConfig(operator="one_step_sampled", num_simulations=4)},
}  # fmt: skip


def make(config: Config, spec: EnvironmentSpec, *, planner: Planner | None = None) -> Learner:
    """The learner.

    Args:
      config: settings.
      spec: shapes; actions must be discrete.
      planner: puts another improvement operator in the place of the one that `config.search` names.

    Raises:
      UsageError: continuous actions, or settings that contradict each other.
    """
    num_actions(spec, "rosmo")
    if config.behavior_coef == 0:
        return latent.make(config, spec, who="rosmo", planner=planner)
    if config.behavior_advantage == "model" and config.search.operator == "one_step" and planner is None:
        advantage = advantages.planned
    else:
        advantage = advantages.make(config.behavior_advantage, muzero.make(config.model, spec), config.gamma)

    def clone(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        found = advantage(params, embeddings, trajectory, plan, values)
        return weights.indicator(found, at_zero=config.behavior_at_zero)

    return latent.make(
        config, spec, who="rosmo", clone=clone, behavior_coef=config.behavior_coef, planner=planner)  # fmt: skip
