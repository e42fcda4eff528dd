"""The improvement operators of the latent family by name, for learning and for acting.

A new operator is one file in `planning` and one line in `OPERATORS`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Protocol

from offline_mbrl import settings
from offline_mbrl.planning import acting, lookahead, mcts, one_step
from offline_mbrl.settings import ReadIf, Scope, above, at_least, between, one_of, read_if
from offline_mbrl.types import LatentModel, Planner, UsageError


class MakePlanner(Protocol):
    """Builds the planner of one operator."""

    def __call__(
        self, config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
    ) -> Planner:
        """The planner; the config's settings of other operators are not read."""
        ...


class Operator(NamedTuple):
    """A way to improve a policy."""

    make: MakePlanner
    is_random: bool = False  # its weights depend on the key: its policy has no log probability


# --- how each is made ---


def _one_step(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    del config
    return one_step.exact(model, num_actions=num_actions, gamma=gamma)


def _one_step_sampled(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return one_step.sampled(
        model,
        num_actions=num_actions,
        gamma=gamma,
        num_samples=config.num_simulations,
        normalize=config.normalize_sampled,
    )


def _lookahead(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return lookahead.softmax_backup(
        model,
        num_actions=num_actions,
        gamma=gamma,
        depth=config.depth,
        temperature=config.temperature,
    )


def _lookahead_max(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return lookahead.max_backup(model, num_actions=num_actions, gamma=gamma, depth=config.depth)


def _muzero(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return mcts.muzero(
        model,
        num_actions=num_actions,
        gamma=gamma,
        num_simulations=config.num_simulations,
        max_depth=config.max_depth,
        dirichlet_fraction=config.dirichlet_fraction,
        dirichlet_alpha=config.dirichlet_alpha,
        temperature=config.visit_temperature,
    )


def _muzero_q(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return mcts.muzero_q(
        model,
        num_actions=num_actions,
        gamma=gamma,
        num_simulations=config.num_simulations,
        max_depth=config.max_depth,
        dirichlet_fraction=config.dirichlet_fraction,
        dirichlet_alpha=config.dirichlet_alpha,
        temperature=config.temperature,
    )


def _gumbel(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return mcts.gumbel(
        model,
        num_actions=num_actions,
        gamma=gamma,
        num_simulations=config.num_simulations,
        max_depth=config.max_depth,
        gumbel_scale=config.gumbel_scale,
        value_scale=config.value_scale,
        maxvisit_init=config.maxvisit_init,
        rescale_values=config.rescale_values,
    )


def _policy(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    del config, num_actions, gamma
    return acting.policy_head(model)


def _largest_value(
    config: "SearchConfig", model: LatentModel, *, num_actions: int, gamma: float
) -> Planner:
    return acting.largest_value(_one_step(config, model, num_actions=num_actions, gamma=gamma))


OPERATORS: dict[str, Operator] = {
    "one_step": Operator(_one_step),
    "one_step_sampled": Operator(_one_step_sampled, is_random=True),
    "lookahead": Operator(_lookahead),
    "lookahead_max": Operator(_lookahead_max),
    "muzero": Operator(_muzero, is_random=True),
    "muzero_q": Operator(_muzero_q, is_random=True),
    "gumbel": Operator(_gumbel, is_random=True),
    "policy": Operator(_policy),
    "largest_value": Operator(_largest_value),
}


# --- settings ---


def used_by(*names: str) -> ReadIf:
    """A setting of these operators, whether they learn or act."""

    def holds(scope: Scope) -> bool:
        return scope.config.operator in names or getattr(scope.root, "acting", "") in names

    return read_if(holds, f"operator {' or '.join(names)}")


if_tree = used_by("muzero", "muzero_q", "gumbel")
if_muzero = used_by("muzero", "muzero_q")
if_gumbel = used_by("gumbel")


@dataclass(frozen=True)
class SearchConfig:
    """The operator and its settings; mctx's defaults unless said otherwise."""

    operator: Annotated[str, one_of(OPERATORS)] = "one_step"  # a name of OPERATORS
    # Simulations of muzero, muzero_q and gumbel, samples of one_step_sampled.
    num_simulations: Annotated[
        int, at_least(1), used_by("muzero", "muzero_q", "gumbel", "one_step_sampled")
    ] = 16
    depth: Annotated[int, at_least(1), used_by("lookahead", "lookahead_max")] = 2
    # Edges below the root, 0 without limit.
    max_depth: Annotated[int, at_least(0), if_tree] = 0
    # muzero_q's tau, and lookahead's below the root; no source gives one.
    temperature: Annotated[float, above(0), used_by("muzero_q", "lookahead")] = 1.0
    # Of the actions taken; targets are always the visits themselves.
    visit_temperature: Annotated[float, at_least(0), used_by("muzero")] = 1.0
    # Share of noise in the root's prior.
    dirichlet_fraction: Annotated[float, between(0, 1), if_muzero] = 0.25
    dirichlet_alpha: Annotated[float, above(0), if_muzero] = 0.3
    # Root noise while acting too, as in the released baseline.
    noisy_acting: Annotated[bool, if_muzero] = False
    # Of the noise that picks the actions it starts with.
    gumbel_scale: Annotated[float, at_least(0), if_gumbel] = 1.0
    # sigma(q) = (maxvisit_init + most visits) * value_scale * q
    value_scale: Annotated[float, if_gumbel] = 0.1
    maxvisit_init: Annotated[float, if_gumbel] = 50.0
    # q from 0 to 1 over the actions
    rescale_values: Annotated[bool, if_gumbel] = True
    # Targets of mass one; the release leaves them as they are.
    normalize_sampled: Annotated[bool, used_by("one_step_sampled")] = False


def make(config: SearchConfig, model: LatentModel, *, num_actions: int, gamma: float) -> Planner:
    """The planner that a config names.

    Args:
      config: the operator and its settings.
      model: what it plans in.
      num_actions: A.
      gamma: discount factor per step.

    Raises:
      UsageError: the operator is unknown, or its settings make no planner.
    """
    settings.require_valid(config, "search")
    make_planner = OPERATORS[config.operator].make
    return make_planner(config, model, num_actions=num_actions, gamma=gamma)


def for_acting(acting: str, config: SearchConfig) -> SearchConfig:
    """The settings of the planner that acts.

    Args:
      acting: "search" for the operator that learning uses, or the name of another. A sampled
        lookahead acts by the policy head, as in ROSMO's release.
      config: the settings of learning; root noise is left out unless `noisy_acting`.

    Raises:
      UsageError: the name is unknown.
    """
    if acting != "search" and acting not in OPERATORS:
        raise UsageError(
            f"unknown acting {acting!r}: choose search or one of {', '.join(OPERATORS)}"
        )
    operator = acting if acting != "search" else config.operator
    if acting == "search" and operator == "one_step_sampled":
        operator = "policy"
    fraction = config.dirichlet_fraction if config.noisy_acting else 0.0
    return replace(config, operator=operator, dirichlet_fraction=fraction)


def without_noise(config: SearchConfig) -> SearchConfig:
    """The settings of greedy acting: no exploration noise at the root.

    A sampled lookahead acts by the policy head.
    """
    operator = "policy" if config.operator == "one_step_sampled" else config.operator
    return replace(config, operator=operator, dirichlet_fraction=0.0, gumbel_scale=0.0)


def is_random(operator: str) -> bool:
    """Whether the operator's weights depend on the key."""
    return OPERATORS[operator].is_random
