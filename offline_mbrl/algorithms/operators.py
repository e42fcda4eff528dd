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
    num_simulations: int = 16  # N: simulations of muzero, muzero_q and gumbel, samples of one_step_sampled
    depth: int = 2  # of lookahead and lookahead_max
    max_depth: int = 0  # muzero, muzero_q, gumbel: edges below the root, 0 without limit
    temperature: float = 1.0  # muzero_q's tau, and of lookahead below the root; no source gives one
    visit_temperature: float = 1.0  # muzero: of the actions taken; targets are always the visits themselves
    dirichlet_fraction: float = 0.25  # muzero, muzero_q: of the root's prior that is noise
    dirichlet_alpha: float = 0.3  # muzero, muzero_q
    noisy_acting: bool = False  # muzero, muzero_q: root noise while acting too, as in the released baseline
    gumbel_scale: float = 1.0  # gumbel: of the noise that picks the actions it starts with
    value_scale: float = 0.1  # gumbel: sigma(q) = (maxvisit_init + most visits) * value_scale * q
    maxvisit_init: float = 50.0  # gumbel
    rescale_values: bool = True  # gumbel: q from 0 to 1 over the actions
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


OPERATORS: dict[str, Operator] = {
    "one_step": Operator(lambda m, config, **sizes: one_step.exact(m, **sizes)),
    "one_step_sampled": Operator(lambda m, config, **sizes: one_step.sampled(
        m, num_samples=config.num_simulations, normalize=config.normalize_sampled, **sizes), random=True),
    "lookahead": Operator(lambda m, config, **sizes: lookahead.softmax_backup(
        m, depth=config.depth, temperature=config.temperature, **sizes)),
    "lookahead_max": Operator(lambda m, config, **sizes: lookahead.max_backup(m, depth=config.depth, **sizes)),
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
    for name in ("num_simulations", "depth", "temperature", "dirichlet_alpha"):
        if not getattr(config, name) > 0:  # not NaN either
            raise UsageError(f"search: {name} is {getattr(config, name)}; give more than 0")
    for name in ("max_depth", "visit_temperature", "gumbel_scale"):
        if not getattr(config, name) >= 0:
            raise UsageError(f"search: {name} is {getattr(config, name)}; give 0 or more")
    return _lookup(config.operator).make(model, config, num_actions=num_actions, gamma=gamma)


def for_acting(acting: str, config: SearchConfig) -> SearchConfig:
    """The settings of the planner that acts.

    Args:
      acting: "search" for the operator that learning uses, or the name of another. A sampled lookahead acts by the
        policy head, as in ROSMO's release.
      config: the settings of learning; root noise is left out unless `noisy_acting`.
    """
    if acting != "search" and acting not in OPERATORS:
        raise UsageError(f"unknown acting {acting!r}: choose search or one of {', '.join(OPERATORS)}")
    operator = acting if acting != "search" else config.operator
    if acting == "search" and operator == "one_step_sampled":
        operator = "policy"
    fraction = config.dirichlet_fraction if config.noisy_acting else 0.0
    return replace(config, operator=operator, dirichlet_fraction=fraction)


def without_noise(config: SearchConfig) -> SearchConfig:
    """The settings of greedy acting: no exploration noise at the root; one that samples acts by the policy head."""
    operator = "policy" if config.operator == "one_step_sampled" else config.operator
    return replace(config, operator=operator, dirichlet_fraction=0.0, gumbel_scale=0.0)


def is_random(operator: str) -> bool:
    """Whether the operator's weights depend on the key."""
    return _lookup(operator).random


def _lookup(operator: str) -> Operator:
    if operator not in OPERATORS:
        raise UsageError(f"unknown operator {operator!r}: choose one of {', '.join(OPERATORS)}")
    return OPERATORS[operator]
