"""MuZero Unplugged and two relatives: a tree search reanalyses the data's own states.

Papers: "Online and Offline Reinforcement Learning by Planning with a Learned Model"
(arXiv:2104.06294); MZU-Q, whose policy target is the prior times the exponential of the searched
action values, after arXiv:2007.12509; Gumbel MuZero (Danihelka et al., ICLR 2022). The searches are
mctx's (`planning.mcts`); everything else is `latent`'s.

The defaults share every training setting with `rosmo` without its behavior term, so that only the
operator differs; 16 simulations are ours.
Presets:
* `published`: the paper's Atari settings: 50 simulations, K = n = 5, gamma 0.997, batch 1024, a
  million updates, Adam with decoupled decay that is annealed with the rate (1e-4, cosine to 0),
  target copied every 100 updates, the heads read the unscaled embedding, MuZero's weights over the
  unroll, root noise Dirichlet(0.25), final visit temperature 0.25, 601 bins (gamma 0.997 lets
  values reach 333). Of decay, 1e-4 times the rate over its first value is 1.0 times the rate. The
  cosine ends at a million updates: shorten `optimizer.decay_updates` with `num_updates`.
* `released`: the baseline in ROSMO's release: returns bootstrap from the searched root values of
  all T + 1 states, root noise while acting too, 20 simulations (its README's example), every end of
  an episode taken for a terminal.
Departures: uniform instead of prioritised replay, one visit temperature instead of three in turn,
embeddings that are not scaled to [0, 1], networks of the family instead of the paper's, and
Q-values of actions that the search left out are completed by Gumbel MuZero's mixed value (no source
says how MZU-Q does it).
"""

from dataclasses import dataclass, field

from offline_mbrl.algorithms import latent, operators
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.networks import optimizers
from offline_mbrl.types import EnvironmentSpec, Learner


@dataclass(frozen=True)
class Config(latent.Config):
    """MuZero Unplugged: visit counts."""

    search: operators.SearchConfig = field(
        default_factory=lambda: operators.SearchConfig(operator="muzero")
    )


@dataclass(frozen=True)
class QConfig(latent.Config):
    """MZU-Q: prior times the exponential of the searched action values over a temperature."""

    search: operators.SearchConfig = field(
        default_factory=lambda: operators.SearchConfig(operator="muzero_q")
    )


@dataclass(frozen=True)
class GumbelConfig(latent.Config):
    """Gumbel MuZero: sequential halving at the root, completed action values."""

    search: operators.SearchConfig = field(
        default_factory=lambda: operators.SearchConfig(operator="gumbel")
    )


NAMES = {Config: "muzero_unplugged", QConfig: "mzu_q", GumbelConfig: "gumbel"}
PRESETS = {
    "comparable": {},
    "published": {
        "num_updates": 1_000_000,
        "batch_size": 1024,
        "unroll_steps": 5,
        "td_steps": 5,
        "gamma": 0.997,
        "target_period": 100,
        "model": muzero.ModelConfig(num_bins=601),
        "search": operators.SearchConfig(
            operator="muzero", num_simulations=50, dirichlet_alpha=0.25, visit_temperature=0.25
        ),
        "loss": unrolled.LossConfig(scale_before_heads=False, step_weights="root"),
        "optimizer": optimizers.OptimizerConfig(
            learning_rate=1e-4,
            schedule="cosine",
            warmup_updates=0,
            decay_updates=1_000_000,
            weight_decay=1.0,
            max_grad_norm=0.0,
        ),
    },
    "released": {
        "value_target": "search_root_mean",
        "bootstrap_on_truncation": False,
        "start_on_final": True,
        "search": operators.SearchConfig(operator="muzero", num_simulations=20, noisy_acting=True),
        "model": muzero.ModelConfig(num_bins=20),
    },
}


def make(config: latent.Config, spec: EnvironmentSpec) -> Learner:
    """The learner of any of the three, by the class of its config.

    Raises:
      UsageError: continuous actions, or settings that contradict each other.
    """
    return latent.make(config, spec, caller=NAMES.get(type(config), "muzero_unplugged"))
