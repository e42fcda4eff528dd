"""ROSMO: a latent model whose policy regresses to its own one-step lookahead, kept close to the data where it pays.

Paper: "Efficient Offline Policy Optimization with a Learned Model" (arXiv:2210.05980). Equations here: the reward,
value, policy and behavior losses on an unrolled model. The lookahead is `planning.one_step`, the networks are
`models.muzero`, n-step returns and two-hot targets are in `targets`.

Where the paper and its released code disagree, each choice is a setting; `published` is the default, and the preset
`released` gives the code's behavior:
* `behavior_advantage`: from the model (published), or from encoded real frames ("encoded_next", released; it reads a
  reward head that is trained on unrolled embeddings alone). "data_td" uses the logged reward; neither source has it.
* `behavior_at_zero`: the behavior loss at an advantage of exactly 0: on (published) or off (released).
* `bootstrap_on_truncation`: the release takes every end of an episode for a terminal.
* `start_on_final`: the release lets windows start on an episode's last record.
* `model.num_bins`: 20 in the release, which makes the support lopsided and the first values 1.246.
Departures from both: windows are drawn with replacement, and steps after a truncation are left out of the losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.models import muzero
from offline_mbrl.networks import optimizers
from offline_mbrl.planning import one_step
from offline_mbrl.targets import returns, transforms
from offline_mbrl.types import (
    Array,
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
    """Values of the released code (`sail-sg/rosmo`, BSuite) unless said otherwise."""

    num_updates: int = 200_000
    batch_size: int = 512  # windows per update
    unroll_steps: int = 3  # K, model steps
    td_steps: int = 3  # n, rewards before the bootstrap
    gamma: float = 0.997**4
    reward_coef: float = 1.0
    value_coef: float = 0.25
    policy_coef: float = 1.0
    behavior_coef: float = 0.2
    target_period: int = 200  # updates between copies of the parameters to the target
    gradient_scale: float = 0.5  # of the embedding after every model step
    scale_before_heads: bool = True  # released; False scales only what the next model step sees (MuZero)
    behavior_advantage: Literal["model", "encoded_next", "data_td"] = "model"
    behavior_at_zero: float = 1.0  # H(0)
    bootstrap_on_truncation: bool = True
    start_on_final: bool = False
    model: muzero.ModelConfig = field(default_factory=muzero.ModelConfig)
    optimizer: optimizers.OptimizerConfig = field(default_factory=optimizers.OptimizerConfig)


PRESETS = {
    "published": {},
    "released": {
        "behavior_advantage": "encoded_next", "behavior_at_zero": 0.0, "bootstrap_on_truncation": False,
        "start_on_final": True, "model": muzero.ModelConfig(num_bins=20),
    },
}  # fmt: skip


class State(NamedTuple):
    """Everything that changes while learning."""

    params: PyTree
    target_params: PyTree
    opt_state: optax.OptState
    step: Array  # [] updates done


class Targets(NamedTuple):
    """What the unrolled model regresses to, one trajectory; none of it carries a gradient."""

    reward: Array  # [K]
    value: Array  # [K + 1]
    policy: Array  # [K + 1, A]
    behavior: Array  # [K + 1] 1 where the data's action is cloned
    known: Array  # [K + 1] 0 after a truncation, where there is nothing to learn


Advantage = Callable[[PyTree, PyTree, Trajectory, Plan, Array], Array]


# --- advantages of the data's actions, [K + 1]: which actions the behavior loss clones ---


def model_advantage(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
    """`r(s, a) + gamma v(g(s, a)) - v(s)`, all from the model: the lookahead's own value of the data's action."""
    del params, embeddings, values
    actions = trajectory.action[: plan.value.shape[0]]
    return jnp.take_along_axis(plan.qvalues, actions[:, None], axis=1)[:, 0] - plan.value


def encoded_next_advantage(model: LatentModel, gamma: float) -> Advantage:
    """`r(h(o')) + gamma v(h(o')) - v(h(o))` on encoded frames, as the released code has it."""

    def advantage(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        del trajectory
        size = plan.value.shape[0]
        following = jax.vmap(model.predict, (None, 0))(params, embeddings[1 : size + 1])
        reward = jax.vmap(model.scalar)(following.reward_logits)
        return reward + gamma * values[1 : size + 1] - plan.value

    return advantage


def data_td_advantage(gamma: float) -> Advantage:
    """`r + gamma v(s') - v(s)` with the logged reward."""

    def advantage(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        del params, embeddings
        size = plan.value.shape[0]
        return trajectory.reward[:size] + gamma * trajectory.discount[:size] * values[1 : size + 1] - plan.value

    return advantage


# --- targets and loss, one trajectory ---


def truncation_terminates(trajectory: Trajectory) -> Trajectory:
    """Takes every end of an episode for a terminal; the window loses its last step, which only tells how it ended."""
    observation = jax.tree.map(lambda leaf: leaf[:-1], trajectory.observation)
    discount = trajectory.discount[:-1] * trajectory.mask[1:]
    shorter = jax.tree.map(lambda leaf: leaf[:-1], trajectory._replace(observation=(), discount=()))
    return shorter._replace(observation=observation, discount=discount)


def compute_targets(
    model: LatentModel, planner: Planner, advantage: Advantage, config: Config,
    params: PyTree, trajectory: Trajectory, key: Array,
) -> Targets:  # fmt: skip
    """Targets from the target parameters: n-step values, one-step policies, and which actions to clone.

    Args:
      model, planner, advantage, config: the method.
      params: target parameters.
      trajectory: `T = K + n` steps.
      key: consumed by the planner.
    """
    size = config.unroll_steps + 1
    embeddings = jax.vmap(model.represent, (None, 0))(params, trajectory.observation)
    plan = jax.vmap(planner, (None, 0, 0))(params, embeddings[:size], jax.random.split(key, size))
    later = jax.vmap(model.predict, (None, 0))(params, embeddings[size:])
    values = jnp.concatenate([plan.value, jax.vmap(model.scalar)(later.value_logits)])
    # Past a truncation nothing happens: the value of the last observation is passed back undiscounted to the cut.
    discount = trajectory.discount * jnp.where(trajectory.mask > 0, config.gamma, 1.0)
    value = returns.n_step_returns(trajectory.reward, discount, values, n=config.td_steps)
    happened = trajectory.mask[:size]
    absorbing = (1.0 - happened) * (1.0 - trajectory.discount[:size])
    uniform = jnp.full_like(plan.weights, 1.0 / plan.weights.shape[1])
    behavior = jnp.heaviside(advantage(params, embeddings, trajectory, plan, values), config.behavior_at_zero)
    targets = Targets(
        reward=trajectory.reward[: size - 1], value=jnp.where(absorbing > 0, 0.0, value),
        policy=jnp.where(absorbing[:, None] > 0, uniform, plan.weights),
        behavior=behavior * happened, known=happened + absorbing)  # fmt: skip
    return jax.lax.stop_gradient(targets)


def unroll(model: LatentModel, config: Config, params: PyTree, observation: PyTree, actions: Array) -> PyTree:
    """Embeddings `[K + 1, D]` that the heads read: the encoded observation, then K model steps."""
    embedding = model.represent(params, observation)
    embeddings = [embedding]
    for action in actions:
        following = model.dynamics(params, embedding, action)
        embedding = optax.scale_gradient(following, config.gradient_scale)
        embeddings.append(embedding if config.scale_before_heads else following)
    return jnp.stack(embeddings)


def loss(
    model: LatentModel, config: Config, params: PyTree, trajectory: Trajectory, targets: Targets, key: Array
) -> tuple[Array, Metrics]:
    """The four cross-entropies of one trajectory, each a mean over the unroll.

    Steps past the end of an episode take a random action: an absorbing state must be insensitive to it.
    """
    num_steps = config.unroll_steps
    chosen = trajectory.action[: num_steps + 1]
    random = jax.random.randint(key, (num_steps,), 0, targets.policy.shape[1])
    actions = jnp.where(trajectory.mask[:num_steps] > 0, chosen[:num_steps], random)
    first = jax.tree.map(lambda leaf: leaf[0], trajectory.observation)
    embeddings = unroll(model, config, params, first, actions)
    heads = jax.vmap(model.predict, (None, 0))(params, embeddings)
    two_hot = jax.vmap(lambda x: transforms.two_hot(x, heads.value_logits.shape[1]))
    cross_entropy, known = optax.softmax_cross_entropy, targets.known
    cloned = optax.softmax_cross_entropy_with_integer_labels(heads.policy_logits, chosen)
    parts = {
        "reward": jnp.mean(known[1:] * cross_entropy(heads.reward_logits[1:], two_hot(targets.reward))),
        "value": jnp.mean(known * cross_entropy(heads.value_logits, two_hot(targets.value))),
        "policy": jnp.mean(known * cross_entropy(heads.policy_logits, targets.policy)),
        "behavior": jnp.mean(targets.behavior * cloned),
    }
    coefs = jnp.array([config.reward_coef, config.value_coef, config.policy_coef, config.behavior_coef])
    total = jnp.dot(coefs, jnp.stack(list(parts.values())))
    metrics = {"loss/total": total} | {f"loss/{name}": part for name, part in parts.items()}
    return total, metrics | {"target/value": jnp.mean(targets.value), "target/cloned": jnp.mean(targets.behavior)}


# --- assembly ---


def make_policy(model: LatentModel, planner: Planner) -> Policy:
    """Acts by the planner at the encoded observation: sampled, its own choice; greedy, the largest weight.

    Greedy acting plans with a fixed key, so that it repeats itself under planners that sample too.
    """

    def plan(params: PyTree, observation: PyTree, key: Array) -> Plan:
        return planner(params, model.represent(params, observation), key)

    def mode(params: PyTree, observation: PyTree) -> Array:
        found = plan(params, observation, jax.random.key(0))
        return found.actions[jnp.argmax(found.weights)]

    def log_prob(params: PyTree, observation: PyTree, action: Array) -> Array:
        return jnp.log(plan(params, observation, jax.random.key(0)).weights[action])

    return Policy(lambda params, observation, key: plan(params, observation, key).action, mode, log_prob)


def make(config: Config, spec: EnvironmentSpec, *, planner: Planner | None = None) -> Learner:
    """The learner.

    Args:
      config: settings.
      spec: shapes; actions must be discrete.
      planner: puts another improvement operator in the place of the exact one-step lookahead.

    Raises:
      UsageError: continuous actions, or settings that contradict each other.
    """
    size = num_actions(spec, "rosmo")
    model = muzero.make(config.model, spec)
    if min(config.unroll_steps, config.td_steps, config.batch_size, config.target_period) < 1:
        raise UsageError("unroll_steps, td_steps, batch_size and target_period must be at least 1")
    planner = planner or one_step.exact(model, num_actions=size, gamma=config.gamma)
    advantages = {
        "model": model_advantage, "encoded_next": encoded_next_advantage(model, config.gamma),
        "data_td": data_td_advantage(config.gamma),
    }  # fmt: skip
    if (advantage := advantages.get(config.behavior_advantage)) is None:
        raise UsageError(f"behavior_advantage {config.behavior_advantage!r} is unknown: {', '.join(advantages)}")
    ends = (lambda trajectory: trajectory) if config.bootstrap_on_truncation else truncation_terminates
    length = config.unroll_steps + config.td_steps + (not config.bootstrap_on_truncation)
    optimizer = optimizers.make(config.optimizer)

    def init(key: Array, example: Trajectory, statistics: PyTree, given: PyTree) -> State:
        del example, statistics, given  # sizes come from the spec; the encoder takes raw observations
        params = model.init(key)
        return State(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def batch_loss(params: PyTree, target_params: PyTree, batch: Trajectory, key: Array) -> tuple[Array, Metrics]:
        def one(trajectory: Trajectory, key: Array) -> tuple[Array, Metrics]:
            key_plan, key_action = jax.random.split(key)
            trajectory = ends(trajectory)
            targets = compute_targets(model, planner, advantage, config, target_params, trajectory, key_plan)
            return loss(model, config, params, trajectory, targets, key_action)

        total, metrics = jax.vmap(one)(batch, jax.random.split(key, batch.reward.shape[0]))
        return jnp.mean(total), jax.tree.map(jnp.mean, metrics)

    def step(state: State, batch: Trajectory, key: Array) -> tuple[State, Metrics]:
        gradient, metrics = jax.grad(batch_loss, has_aux=True)(state.params, state.target_params, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, count = optax.apply_updates(state.params, updates), state.step + 1
        copy = count % config.target_period == 0
        target_params = jax.tree.map(lambda new, old: jnp.where(copy, new, old), params, state.target_params)
        return State(params, target_params, opt_state, count), metrics | {"gradient/norm": optax.tree.norm(gradient)}

    return Learner(
        sample=memory.windows(config.batch_size, length, start_on_final=config.start_on_final),
        init=init, step=step, policy=make_policy(model, planner), policy_params=lambda state: state.params,
    )  # fmt: skip
