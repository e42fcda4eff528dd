"""The improvement operators of the latent family by name: which planner learning regresses to, and which one acts.

A new operator is one file in `planning` and one line in `OPERATORS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from offline_mbrl.planning import acting, lookahead, mcts, one_step
from offline_mbrl.types import LatentModel, Planner, UsageError


@dataclass(frozen=True)
class SearchConfig:
    """The operator and its settings; mctx's defaults unless said otherwise."""

    operator: str = "one_step"  # a name of OPERATORS; an unknown one is refused with the list
    num_simulations: int = 16  # N: simulations of a tree search, samples of one_step_sampled
    max_depth: int = 0  # edges below the root of a tree search, 0 without limit; the depth of a lookahead
    temperature: float = 1.0  # tau of muzero_q and of lookahead; no source gives one, 1 makes depth 1 equal one_step
    visit_temperature: float = 1.0  # of the actions taken by visits; targets are always the visits themselves
    dirichlet_fraction: float = 0.25  # of the root's prior that is noise, muzero and muzero_q
    dirichlet_alpha: float = 0.3
    gumbel_scale: float = 1.0  # of the noise that picks the actions gumbel starts with
    value_scale: float = 0.1  # gumbel's sigma(q) = (maxvisit_init + most visits) * value_scale * q
    maxvisit_init: float = 50.0
    rescale_values: bool = True  # gumbel's q from 0 to 1 over the actions; False, 1.0, 0.0 make it MZU-Q's exp(q)
    noisy_acting: bool = False  # root noise also while acting: what MuZero Unplugged's released baseline does
    normalize_sampled: bool = False  # one_step_sampled: targets of mass one; the release leaves them as they are


class Operator(NamedTuple):
    """One way to improve a policy."""

    make: Callable[..., Planner]  # (model, SearchConfig, *, num_actions, gamma) -> Planner
    random: bool = False  # its weights depend on the key, so that its policy has no closed log probability


def _muzero(config: SearchConfig) -> dict:
    return {
        "num_simulations": config.num_simulations, "max_depth": config.max_depth,
        "dirichlet_fraction": config.dirichlet_fraction, "dirichlet_alpha": config.dirichlet_alpha,
    }  # fmt: skip


def _depth(config: SearchConfig) -> int:
    if config.max_depth < 1:
        raise UsageError(
            f"operator {config.operator}: max_depth is its depth, and is {config.max_depth}; give 1 or more"
        )
    return config.max_depth


OPERATORS: dict[str, Operator] = {
    "one_step": Operator(lambda m, config, **sizes: one_step.exact(m, **sizes)),
    "one_step_sampled": Operator(lambda m, config, **sizes: one_step.sampled(
        m, num_samples=config.num_simulations, normalize=config.normalize_sampled, **sizes), random=True),
    "lookahead": Operator(lambda m, config, **sizes: lookahead.softmax_backup(
        m, depth=_depth(config), temperature=config.temperature, **sizes)),
    "lookahead_max": Operator(lambda m, config, **sizes: lookahead.max_backup(m, depth=_depth(config), **sizes)),
    "muzero": Operator(lambda m, config, **sizes: mcts.muzero(
        m, temperature=config.visit_temperature, **_muzero(config), **sizes), random=True),
    "muzero_q": Operator(lambda m, config, **sizes: mcts.muzero_q(
        m, temperature=config.temperature, **_muzero(config), **sizes), random=True),
    "gumbel": Operator(lambda m, config, **sizes: mcts.gumbel(
        m, num_simulations=config.num_simulations, max_depth=config.max_depth, gumbel_scale=config.gumbel_scale,
        value_scale=config.value_scale, maxvisit_init=config.maxvisit_init, rescale_values=config.rescale_values,
        **sizes), random=True),
    "policy": Operator(lambda m, config, **sizes: acting.policy_head(m)),
    "largest_value": Operator(lambda m, config, **sizes: acting.largest_value(one_step.exact(m, **sizes))),
}  # fmt: skip


def make(config: SearchConfig, model: LatentModel, *, num_actions: int, gamma: float) -> Planner:
    """The planner that a config names.

    Raises:
      UsageError: the operator is unknown, or its settings make no planner.
    """
    return _lookup(config.operator).make(model, config, num_actions=num_actions, gamma=gamma)


def for_acting(acting: str, config: SearchConfig) -> SearchConfig:
    """The settings of the planner that acts.

    Args:
      acting: "search" for the operator that learning uses, or the name of another. A sampled lookahead acts by the
        policy head, as in ROSMO's release.
      config: the settings of learning; root noise is left out unless `noisy_acting`.
    """
    operator = acting if acting != "search" else config.operator
    if acting == "search" and operator == "one_step_sampled":
        operator = "policy"
    fraction = config.dirichlet_fraction if config.noisy_acting else 0.0
    return replace(config, operator=operator, dirichlet_fraction=fraction)


def is_random(operator: str) -> bool:
    """Whether the operator's weights depend on the key."""
    return _lookup(operator).random


def _lookup(operator: str) -> Operator:
    if operator not in OPERATORS:
        raise UsageError(f"unknown operator {operator!r}: choose one of {', '.join(OPERATORS)}")
    return OPERATORS[operator]
