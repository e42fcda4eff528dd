"""What the latent family shares: settings, the update, and acting by a planner.

MuZero Unplugged (arXiv:2104.06294), ROSMO (arXiv:2210.05980) and their relatives train one model by
one loss. They differ in the operator that improves the policy (`operators`), in the value that
returns bootstrap from, and in a term that clones some of the data's actions (`latent_targets`). All
three are arguments here.

Departures from the sources: windows are drawn uniformly with replacement (MuZero Unplugged: by
priority), and steps after a truncation are left out of the losses.
"""

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.algorithms import latent_targets, operators
from offline_mbrl.algorithms.latent_targets import Clone, Method, clone_nothing
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import averaging
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.networks import optimizers
from offline_mbrl.settings import at_least, between, one_of
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    LatentModel,
    Learner,
    Metrics,
    Observation,
    Params,
    Plan,
    Planner,
    Policy,
    Trajectory,
)
from offline_mbrl.types import num_actions as require_discrete


@dataclass(frozen=True)
class Config:
    """Values of ROSMO's released code (`sail-sg/rosmo`, BSuite) unless said otherwise."""

    num_updates: Annotated[int, at_least(1)] = 200_000
    batch_size: Annotated[int, at_least(1)] = 512  # windows per update
    unroll_steps: Annotated[int, at_least(1)] = 3  # K, model steps
    td_steps: Annotated[int, at_least(1)] = 3  # n, rewards before the bootstrap
    gamma: Annotated[float, between(0, 1)] = 0.997**4
    # Updates between copies of the parameters to the target.
    target_period: Annotated[int, at_least(1)] = 200
    # What values regress to, a name of VALUE_TARGETS.
    value_target: Annotated[str, one_of(latent_targets.VALUE_TARGETS)] = "target_value"
    # By the operator that learning uses, or by another one of OPERATORS, by name.
    acting: Annotated[str, one_of(("search", *operators.OPERATORS))] = "search"
    # Of the moving average of parameters that acts, an update; 0: the last parameters act.
    acting_decay: Annotated[float, between(0, 0.999999)] = 0.0
    bootstrap_on_truncation: bool = True
    start_on_final: bool = False
    search: operators.SearchConfig = field(default_factory=operators.SearchConfig)
    loss: unrolled.LossConfig = field(default_factory=unrolled.LossConfig)
    model: muzero.ModelConfig = field(default_factory=muzero.ModelConfig)
    optimizer: optimizers.OptimizerConfig = field(default_factory=optimizers.OptimizerConfig)


class State(NamedTuple):
    """Everything that changes while learning."""

    params: Params
    target_params: Params
    opt_state: optax.OptState
    step: Array  # [] updates done


class Planners(NamedTuple):
    """Who plans when."""

    learn: Planner  # policy targets
    act: Planner
    # With a fixed key; exploration noise of a fixed key would be a bias, so it should have none.
    act_greedily: Planner
    is_random: bool  # weights of `act_greedily` depend on the key: no log probability


def planners_of(
    config: Config, model: LatentModel, num_actions: int, planner: Planner | None = None
) -> Planners:
    """The planners that a config names, or one planner in the place of all.

    Args:
      config: which operators learn and act.
      model: what they plan in.
      num_actions: A.
      planner: takes the place of the operators.

    Raises:
      UsageError: settings that make no planner.
    """
    if planner is not None:
        return Planners(learn=planner, act=planner, act_greedily=planner, is_random=True)

    def make_planner(search: operators.SearchConfig) -> Planner:
        return operators.make(search, model, num_actions=num_actions, gamma=config.gamma)

    acting = operators.for_acting(config.acting, config.search)
    return Planners(
        learn=make_planner(config.search),
        act=make_planner(acting),
        act_greedily=make_planner(operators.without_noise(acting)),
        is_random=operators.is_random(acting.operator),
    )


def method_of(
    config: Config, model: LatentModel, planner: Planner, clone: Clone, num_actions: int
) -> Method:
    """How a config makes targets.

    Args:
      config: K, n, gamma, and the kind of value target.
      model: the latent model.
      planner: its plans are the policy targets.
      clone: with which weight each of the data's actions is cloned.
      num_actions: A.
    """
    return Method(
        model=model,
        planner=planner,
        clone=clone,
        value_target=latent_targets.VALUE_TARGETS[config.value_target],
        num_actions=num_actions,
        gamma=config.gamma,
        unroll_steps=config.unroll_steps,
        td_steps=config.td_steps,
    )


# --- acting ---


def make_policy(model: LatentModel, planners: Planners, num_actions: int) -> Policy:
    """Acts by a planner at the encoded observation.

    Args:
      model: encodes observations.
      planners: sampled actions are the choices of `act`; greedy ones have the largest weight of
        `act_greedily`.
      num_actions: A.
    """

    def plan(planner: Planner, params: Params, observation: Observation, key: Key) -> Plan:
        root = jax.tree.map(lambda leaf: leaf[None], model.represent(params, observation))
        return jax.tree.map(lambda leaf: leaf[0], planner(params, root, key))

    def weights(params: Params, observation: Observation) -> Array:
        greedy = plan(planners.act_greedily, params, observation, jax.random.key(0))
        return latent_targets.dense(greedy.actions, greedy.weights, num_actions)

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return plan(planners.act, params, observation, key).action

    def mode(params: Params, observation: Observation) -> Action:
        return jnp.argmax(weights(params, observation))

    def log_prob(params: Params, observation: Observation, action: Action) -> Array:
        return jnp.log(weights(params, observation)[action])

    return Policy(sample=sample, mode=mode, log_prob=None if planners.is_random else log_prob)


# --- assembly ---


def make(
    config: Config,
    spec: EnvironmentSpec,
    *,
    caller: str,
    clone: Clone = clone_nothing,
    behavior_coef: float = 0.0,
    planner: Planner | None = None,
) -> Learner:
    """The learner of the family.

    Args:
      config: settings.
      spec: shapes; actions must be discrete.
      caller: the algorithm's name, for messages.
      clone: with which weight each of the data's actions is cloned.
      behavior_coef: coefficient of that term.
      planner: takes the place of the operator that `config.search` names, while learning and
        acting.

    Raises:
      UsageError: continuous actions, unknown names, or settings that contradict each other.
    """
    size = require_discrete(spec, caller)
    settings.require_valid(config, caller, spec)
    model = muzero.make(config.model, spec)
    planners = planners_of(config, model, size, planner)
    method = method_of(config, model, planners.learn, clone, size)
    optimizer = optimizers.make(config.optimizer)

    def init(key: Key, example: Trajectory, context: Context) -> State:
        del example, context  # sizes come from the spec; the encoder takes raw observations
        params = model.init(key)
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            step=jnp.zeros((), jnp.int32),
        )

    def loss(
        params: Params, target_params: Params, batch: Trajectory, key: Key
    ) -> tuple[Array, Metrics]:
        return _loss(method, config, behavior_coef, params, target_params, batch, key)

    def step(state: State, context: Context, batch: Trajectory, key: Key) -> tuple[State, Metrics]:
        del context
        gradient, metrics = jax.grad(loss, has_aux=True)(
            state.params, state.target_params, batch, key
        )
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        count = state.step + 1
        after = State(
            params=params,
            target_params=optax.periodic_update(
                params, state.target_params, count, config.target_period
            ),
            opt_state=opt_state,
            step=count,
        )
        return after, {**metrics, "gradient/norm": optax.tree.norm(gradient)}

    def validate(state: State, context: Context, batch: Trajectory, key: Key) -> Metrics:
        del context
        return loss(state.params, state.target_params, batch, key)[1]

    def policy_params(state: State, context: Context) -> Params:
        del context
        return state.params

    learner = Learner(
        sample=_sampler(config, spec),
        init=init,
        step=step,
        validate=validate,
        policy=make_policy(model, planners, size),
        policy_params=policy_params,
    )
    return (
        averaging.acting_by_average(learner, config.acting_decay)
        if config.acting_decay
        else learner
    )


def _sampler(config: Config, spec: EnvironmentSpec) -> memory.Windows:
    """Windows of K + n steps, and one more where it is needed to see how the last one ended."""
    return memory.Windows(
        batch_size=config.batch_size,
        length=config.unroll_steps + config.td_steps + (not config.bootstrap_on_truncation),
        start_on_final=config.start_on_final,
        frame_stack=spec.frame_stack,
    )


def _loss(
    method: Method,
    config: Config,
    behavior_coef: float,
    params: Params,
    target_params: Params,
    batch: Trajectory,
    key: Key,
) -> tuple[Array, Metrics]:
    """Mean loss of a batch and its parts."""
    key_plan, key_action = jax.random.split(key)
    keep = latent_targets.keep_ends
    ends = keep if config.bootstrap_on_truncation else latent_targets.truncation_terminates
    batch = jax.vmap(ends)(batch)
    targets = latent_targets.compute_targets(method, target_params, batch, key_plan)

    def per_window(
        trajectory: Trajectory, targets: unrolled.Targets, key: Key
    ) -> tuple[Array, Metrics]:
        return unrolled.loss(
            method.model, config.loss, behavior_coef, params, trajectory, targets, key
        )

    keys = jax.random.split(key_action, batch.reward.shape[0])
    total, metrics = jax.vmap(per_window)(batch, targets, keys)
    return jnp.mean(total), jax.tree.map(jnp.mean, metrics)
