"""What the latent family shares: targets from a planner, the unrolled loss, the update, and acting by a planner.

MuZero Unplugged (arXiv:2104.06294), ROSMO (arXiv:2210.05980) and their relatives train one model by one loss. They
differ in the operator that improves the policy (`operators`), in the value that returns bootstrap from, and in a term
that clones some of the data's actions. All three are arguments here.

Departures from the sources: windows are drawn uniformly with replacement (MuZero Unplugged: by priority), and steps
after a truncation are left out of the losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.algorithms import operators
from offline_mbrl.data import memory
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.models.unrolled import Targets
from offline_mbrl.networks import optimizers
from offline_mbrl.targets import returns
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    LatentModel,
    Learner,
    Metrics,
    Plan,
    Planner,
    Policy,
    PyTree,
    Trajectory,
    UsageError,
    num_actions,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Values of ROSMO's released code (`sail-sg/rosmo`, BSuite) unless said otherwise."""

    num_updates: int = 200_000
    batch_size: int = 512  # windows per update
    unroll_steps: int = 3  # K, model steps
    td_steps: int = 3  # n, rewards before the bootstrap
    gamma: float = 0.997**4
    target_period: int = 200  # updates between copies of the parameters to the target
    value_target: str = "target_value"  # a name of VALUE_TARGETS: what values regress to
    acting: str = "search"  # by the operator that learning uses, or by another one of OPERATORS, by name
    bootstrap_on_truncation: bool = True
    start_on_final: bool = False
    search: operators.SearchConfig = field(default_factory=operators.SearchConfig)
    loss: unrolled.LossConfig = field(default_factory=unrolled.LossConfig)
    model: muzero.ModelConfig = field(default_factory=muzero.ModelConfig)
    optimizer: optimizers.OptimizerConfig = field(default_factory=optimizers.OptimizerConfig)


class State(NamedTuple):
    """Everything that changes while learning."""

    params: PyTree
    target_params: PyTree
    opt_state: optax.OptState
    step: Array  # [] updates done


# (target params, embeddings [T + 1], trajectory, plan [K + 1], values [T + 1]) -> [K + 1] weights of cloning
Clone = Callable[[PyTree, PyTree, Trajectory, Plan, Array], Array]


# --- what values regress to ---


class ValueTarget(NamedTuple):
    """One kind of value target, for one trajectory."""

    bootstrap: Callable[[Plan, Array], Array]  # (plan, values [T + 1]) -> what returns bootstrap from
    every_step: bool = False  # it needs a plan at all T + 1 states, not at the K + 1 that need a policy alone
    is_return: bool = True  # False: the bootstrap itself is the target, no reward of the data enters


def _visited_value(plan: Plan, values: Array) -> Array:
    del values
    return jnp.sum(plan.weights * plan.qvalues, -1) / jnp.sum(plan.weights, -1)


VALUE_TARGETS: dict[str, ValueTarget] = {
    "target_value": ValueTarget(lambda plan, values: values),  # ROSMO; MuZero Unplugged on Atari
    "search_root_mean": ValueTarget(lambda plan, values: plan.improved_value, every_step=True),  # released baseline
    "search_visit_q": ValueTarget(_visited_value, every_step=True),  # the talk on ROSMO; weights: visits, by muzero
    "search_only": ValueTarget(lambda plan, values: plan.improved_value, is_return=False),  # 0-step, DM Control
}


# --- targets ---


def truncation_terminates(trajectory: Trajectory) -> Trajectory:
    """Takes every end of an episode for a terminal; the window loses its last step, which only tells how it ended."""
    observation = jax.tree.map(lambda leaf: leaf[:-1], trajectory.observation)
    discount = trajectory.discount[:-1] * trajectory.mask[1:]
    shorter = jax.tree.map(lambda leaf: leaf[:-1], trajectory._replace(observation=(), discount=()))
    return shorter._replace(observation=observation, discount=discount)


def clone_nothing(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
    """No cloning: zeros, one for each planned state."""
    del params, embeddings, trajectory, values
    return jnp.zeros_like(plan.value)


def compute_targets(
    model: LatentModel, planner: Planner, clone: Clone, config: Config, num_actions: int, params: PyTree,
    batch: Trajectory, key: Array,
) -> Targets:  # fmt: skip
    """Targets from the target parameters, of a batch: all roots are searched in one call.

    Args:
      model, planner, clone, config: the method.
      num_actions: A.
      params: target parameters.
      batch: fields `[B, T, ...]`, `T = K + n` steps.
      key: consumed by the planner.

    Returns:
      Targets with a leading axis [B], without gradient.
    """
    params = jax.lax.stop_gradient(params)  # also the input of the search: its loops must not be differentiated
    value_target = VALUE_TARGETS[config.value_target]
    embeddings = jax.vmap(jax.vmap(model.represent, (None, 0)), (None, 0))(params, batch.observation)
    num_roots = batch.reward.shape[1] + 1 if value_target.every_step else config.unroll_steps + 1
    plan = plan_windows(planner, params, jax.tree.map(lambda leaf: leaf[:, :num_roots], embeddings), key)
    rest = jax.tree.map(lambda leaf: leaf[:, num_roots:], embeddings)
    later = jax.vmap(jax.vmap(model.predict, (None, 0)), (None, 0))(params, rest)
    values = jnp.concatenate([plan.value, jax.vmap(jax.vmap(model.scalar))(later.value_logits)], axis=1)

    def one(trajectory: Trajectory, embeddings: PyTree, plan: Plan, values: Array) -> Targets:
        planned = jax.tree.map(lambda leaf: leaf[: config.unroll_steps + 1], plan)
        behavior = clone(params, embeddings, trajectory, planned, values)
        return trajectory_targets(config, num_actions, trajectory, plan, values, behavior)

    return jax.lax.stop_gradient(jax.vmap(one)(batch, embeddings, plan, values))


def plan_windows(planner: Planner, params: PyTree, embeddings: PyTree, key: Array) -> Plan:
    """One call of a planner for embeddings `[B, T, ...]`; the plan has the same two axes."""
    batch, steps = jax.tree.leaves(embeddings)[0].shape[:2]
    plan = planner(params, jax.tree.map(lambda leaf: leaf.reshape(batch * steps, *leaf.shape[2:]), embeddings), key)
    return jax.tree.map(lambda leaf: leaf.reshape(batch, steps, *leaf.shape[1:]), plan)


def trajectory_targets(
    config: Config, num_actions: int, trajectory: Trajectory, plan: Plan, values: Array, behavior: Array
) -> Targets:
    """Targets of one trajectory: rewards, values, policies, and with which weight its actions are cloned.

    Args:
      config: K, n, gamma, and the kind of value target.
      num_actions: A.
      trajectory: `T = K + n` steps.
      plan: fields `[K + 1, ...]` or `[T + 1, ...]`.
      values: `[T + 1]` target network's values.
      behavior: `[K + 1]`.
    """
    size, value_target = config.unroll_steps + 1, VALUE_TARGETS[config.value_target]
    value = value_target.bootstrap(plan, values)
    if value_target.is_return:
        # Past a truncation nothing happens: the last observation's value is passed back undiscounted to the cut.
        discount = trajectory.discount * jnp.where(trajectory.mask > 0, config.gamma, 1.0)
        value = returns.n_step_returns(trajectory.reward, discount, value, n=config.td_steps)
    happened = trajectory.mask[:size]
    absorbing = (1.0 - happened) * (1.0 - trajectory.discount[:size])
    policy = jax.vmap(lambda actions, weights: dense(actions, weights, num_actions))(plan.actions, plan.weights)[:size]
    return Targets(
        reward=trajectory.reward[: size - 1], value=jnp.where(absorbing > 0, 0.0, value[:size]),
        policy=jnp.where(absorbing[:, None] > 0, 1.0 / num_actions, policy),
        behavior=behavior * happened, known=happened + absorbing)  # fmt: skip


def dense(actions: Array, weights: Array, num_actions: int) -> Array:
    """Weights `[N]` of candidate actions `[N]` as weights `[A]` of all actions; a repeated candidate adds up."""
    return weights @ jax.nn.one_hot(actions, num_actions)


# --- acting ---


def make_policy(
    model: LatentModel, planner: Planner, num_actions: int, *, greedy: Planner | None = None, random: bool
) -> Policy:
    """Acts by a planner at the encoded observation: sampled, its own choice; greedy, the largest weight.

    Args:
      model, planner: how to see, and how to choose.
      num_actions: A.
      greedy: plans for greedy acting, with a fixed key; default: `planner`. Exploration noise of a fixed key would be
        a bias, so it should have none.
      random: whether the planner's weights depend on the key. There is no log probability then.
    """

    def plan(params: PyTree, observation: PyTree, key: Array, planner: Planner = planner) -> Plan:
        root = jax.tree.map(lambda leaf: leaf[None], model.represent(params, observation))
        return jax.tree.map(lambda leaf: leaf[0], planner(params, root, key))

    def weights(params: PyTree, observation: PyTree) -> Array:
        found = plan(params, observation, jax.random.key(0), greedy or planner)
        return dense(found.actions, found.weights, num_actions)

    def log_prob(params: PyTree, observation: PyTree, action: Array) -> Array:
        return jnp.log(weights(params, observation)[action])

    return Policy(
        sample=lambda params, observation, key: plan(params, observation, key).action,
        mode=lambda params, observation: jnp.argmax(weights(params, observation)),
        log_prob=None if random else log_prob)  # fmt: skip


# --- assembly ---


def make(
    config: Config, spec: EnvironmentSpec, *, who: str, clone: Clone = clone_nothing, behavior_coef: float = 0.0,
    planner: Planner | None = None,
) -> Learner:  # fmt: skip
    """The learner of the family.

    Args:
      config: settings.
      spec: shapes; actions must be discrete.
      who: the algorithm's name, for messages.
      clone: with which weight each of the data's actions is cloned.
      behavior_coef: coefficient of that term.
      planner: takes the place of the operator that `config.search` names, while learning and acting.

    Raises:
      UsageError: continuous actions, unknown names, or settings that contradict each other.
    """
    size = num_actions(spec, who)
    check(config)
    model = muzero.make(config.model, spec)
    acting = operators.for_acting(config.acting, config.search)
    make_planner = lambda search: operators.make(search, model, num_actions=size, gamma=config.gamma)  # noqa: E731
    improve, act, greedy = [planner] * 3 if planner else [
        make_planner(search) for search in (config.search, acting, operators.without_noise(acting))]  # fmt: skip
    ends = (lambda trajectory: trajectory) if config.bootstrap_on_truncation else truncation_terminates
    length = config.unroll_steps + config.td_steps + (not config.bootstrap_on_truncation)
    optimizer = optimizers.make(config.optimizer)

    def init(key: Array, example: Trajectory, context: Context) -> State:
        del example, context  # sizes come from the spec; the encoder takes raw observations
        params = model.init(key)
        return State(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def batch_loss(params: PyTree, batch: Trajectory, targets: Targets, key: Array) -> tuple[Array, Metrics]:
        one = lambda *inputs: unrolled.loss(model, config.loss, behavior_coef, params, *inputs)  # noqa: E731
        total, metrics = jax.vmap(one)(batch, targets, jax.random.split(key, batch.reward.shape[0]))
        return jnp.mean(total), jax.tree.map(jnp.mean, metrics)

    def loss_of_batch(params: PyTree, target_params: PyTree, batch: Trajectory, key: Array) -> tuple[Array, Metrics]:
        key_plan, key_action = jax.random.split(key)
        batch = jax.vmap(ends)(batch)
        targets = compute_targets(model, improve, clone, config, size, target_params, batch, key_plan)
        return batch_loss(params, batch, targets, key_action)

    def validate(state: State, context: Context, batch: Trajectory, key: Array) -> Metrics:
        del context
        return loss_of_batch(state.params, state.target_params, batch, key)[1]

    def step(state: State, context: Context, batch: Trajectory, key: Array) -> tuple[State, Metrics]:
        del context
        gradient, metrics = jax.grad(loss_of_batch, has_aux=True)(state.params, state.target_params, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, count = optax.apply_updates(state.params, updates), state.step + 1
        copy = count % config.target_period == 0
        target_params = jax.tree.map(lambda new, old: jnp.where(copy, new, old), params, state.target_params)
        return State(params, target_params, opt_state, count), metrics | {"gradient/norm": optax.tree.norm(gradient)}

    random = planner is not None or operators.is_random(acting.operator)
    return Learner(
        sample=memory.Windows(
            config.batch_size, length, start_on_final=config.start_on_final, frame_stack=spec.frame_stack),
        init=init, step=step, validate=validate, policy=make_policy(model, act, size, greedy=greedy, random=random),
        policy_params=lambda state, context: state.params,
    )  # fmt: skip


def check(config: Config) -> None:
    """Refuses settings that make no learner.

    Raises:
      UsageError: a count below one, a gamma outside 0..1, or an unknown name.
    """
    if not 0.0 <= config.gamma <= 1.0:
        raise UsageError(f"gamma must lie in 0..1, got {config.gamma}")
    if min(config.unroll_steps, config.td_steps, config.batch_size, config.target_period) < 1:
        raise UsageError("unroll_steps, td_steps, batch_size and target_period must be at least 1")
    unrolled.step_weights(config.loss.step_weights, config.unroll_steps)  # refuses an unknown kind
    if config.value_target not in VALUE_TARGETS:
        raise UsageError(f"unknown value_target {config.value_target!r}: choose one of {', '.join(VALUE_TARGETS)}")
