"""Actor-critic with a divergence from the data's actions: BRAC (arXiv:1911.11361) and BEAR.

The actor climbs the least critic and pays for its divergence from a model of the data's actions;
BRAC-v pays in the critics' targets too. BEAR (arXiv:1906.00949) compares few samples with those of
an autoencoder, which sees the support of the data rather than its density, learns the weight that
holds the divergence at a threshold, and acts by the best of many samples.

Departures: all losses of an update are taken at the parameters before it; critics' squared errors
carry a 1/2; weights start as those of `torsos.MLP`; the clone of BRAC is fitted by likelihood alone
(the released code rewards its entropy), and actions before `tanh` are scored rather than clipped
ones. Of public code it does not take over: a dual step whose gradient cancels
that of the constraint in the actor, a random start of the weight, a kernel whose name is ignored,
and an actor that is not trained when the weight is fixed.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners import bc
from offline_mbrl.learners.parts import actor_critic, candidates, divergences
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.learners.parts.behavior import Behavior, autoencoded, cloned
from offline_mbrl.learners.parts.preprocessing import with_inputs
from offline_mbrl.learners.regularized.configs import Config
from offline_mbrl.networks import conditional_vae, distributions, heads, optimizers, torsos
from offline_mbrl.networks.distributions import SquashedNormal
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    Stage,
    Transition,
    action_size,
)

LOG_WEIGHT_BOUNDS = (-5.0, 10.0)  # of a learned weight; BEAR's released code
CLONE = "behavior"  # the earlier stage of divergences between densities


# --- the equations, one transition ---


def actor_loss(q: Array, divergence: Array, *, weight: Array) -> Array:
    """`weight D(s) - min_i Q_i(s, a)`, `[]`; no gradient goes through the weight.

    Args:
      q: `[N]` critics at the policy's action.
      divergence: `[]` of the policy from the data's actions.
      weight: `[]` alpha.

    Source: arXiv:1911.11361, equation 6; arXiv:1906.00949, equation 1 with its multiplier.
    """
    chex.assert_rank([q, divergence, weight], [1, 0, 0])
    return jax.lax.stop_gradient(weight) * divergence - jnp.min(q)


def weight_loss(log_weight: Array, divergence: Array, *, threshold: float) -> Array:
    """`-exp(log_weight) (D(s) - threshold)`, `[]`; no gradient goes through the divergence.

    Args:
      log_weight: `[]` logarithm of alpha.
      divergence: `[]` of the policy from the data's actions.
      threshold: alpha grows while the divergence is above it.

    Source: arXiv:1906.00949, equation 1, the dual.
    """
    chex.assert_rank([log_weight, divergence], 0)
    return -jnp.exp(log_weight) * (jax.lax.stop_gradient(divergence) - threshold)


# --- the parts of an update ---

# agent -> []: the weight of the divergence
Weight = Callable[[Agent], Array]


def objective(
    behavior: Behavior,
    weight: Weight,
    *,
    threshold: float | None,
    constraint_updates: int,
) -> actor_critic.ActorObjective:
    """The mean of `actor_loss`, and the losses of what else is learned with the actor.

    Args:
      behavior: what the policy is held to.
      weight: of the divergence.
      threshold: of a learned weight; None: it is fixed.
      constraint_updates: the first ones leave the critics out.
    """

    def loss(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        key_action, key_divergence, key_behavior = jax.random.split(key, 3)
        action, _ = actor_critic.sample_actions(agent.policy, batch.observation, key_action)
        q = agent.critics(batch.observation, action)
        distance = behavior.divergence(agent, context, batch.observation, key_divergence)
        q = jnp.where(agent.state.num_updates < constraint_updates, 0.0, q)

        def per_transition(q: Array, distance: Array) -> Array:
            return actor_loss(q, distance, weight=weight(agent))

        policy_loss = jnp.mean(jax.vmap(per_transition, (1, 0))(q, distance))
        behavior_loss, metrics = behavior.loss(agent, batch, key_behavior)
        metrics = {
            **metrics,
            "loss/policy": policy_loss,
            "divergence": jnp.mean(distance),
            "divergence_weight": weight(agent),
        }
        total = policy_loss + behavior_loss
        if threshold is not None:
            over_batch = jax.vmap(functools.partial(weight_loss, threshold=threshold), (None, 0))
            total += jnp.mean(over_batch(agent.state.actor["log_weight"], distance))
        return ActorLoss(loss=total, metrics=metrics)

    return loss


# --- assembly ---


def policy_network(config: Config, spec: EnvironmentSpec, limit: str) -> parts.Network:
    """A squashed normal of the policy's sizes.

    Args:
      config: sizes and bounds.
      spec: of the problem.
      limit: how log standard deviations are bounded, `smooth` or `clip`.

    Raises:
      UsageError: the actions are discrete.
    """

    def smooth(raw: Array) -> Array:
        return heads.between(raw, *config.log_std_bounds)

    def clip(raw: Array) -> Array:
        return jnp.clip(raw, *config.log_std_bounds)

    bound = {"smooth": smooth, "clip": clip}[limit]
    return parts.squashed_normal_actor(spec, "brac", config.actor_layers, bound)


def behavior_model(config: Config, spec: EnvironmentSpec) -> Behavior:
    """What the policy is held to.

    Raises:
      UsageError: the actions are discrete.
    """

    def exact(policy: SquashedNormal, clone: SquashedNormal, key: Key) -> Array:
        del key  # deterministic
        return divergences.kl(policy, clone)

    def sampled(policy: SquashedNormal, clone: SquashedNormal, key: Key) -> Array:
        samples = divergences.samples_before_tanh(policy, key, config.num_samples)
        return divergences.sampled_kl(policy, clone, samples)

    kernels = {"mmd_laplacian": divergences.laplacian, "mmd_gaussian": divergences.gaussian}
    densities = {"kl": exact, "kl_sampled": sampled}
    if config.divergence in densities:
        clone = policy_network(config, spec, "smooth")
        return cloned(clone, CLONE, densities[config.divergence])
    size = action_size(spec, "brac")
    vae = conditional_vae.make(torsos.flat_size(spec.observation), size, config.vae_layers)
    kernel = functools.partial(kernels[config.divergence], width=config.kernel_width)
    return autoencoded(vae, kernel, config.num_samples)


def networks(config: Config, spec: EnvironmentSpec, behavior: Behavior) -> Networks:
    """Policy, autoencoder and learned weight in the actor's parameters, and critics.

    Args:
      config: sizes and options.
      spec: of the problem.
      behavior: what the policy is held to.

    Raises:
      UsageError: the actions are discrete.
    """
    actor = policy_network(config, spec, config.log_std_limit)
    critics = parts.critics(spec, "brac", config.critic_layers, config.num_critics)

    def init_actor(key: Key) -> Params:
        key_policy, key_behavior = jax.random.split(key)
        params = {"policy": actor.init(key_policy), **behavior.init(key_behavior)}
        if config.threshold is not None:
            params["log_weight"] = jnp.zeros(())
        return params

    def policy(params: Params, observation: Observation) -> SquashedNormal:
        return actor.apply(params["policy"], observation)

    return Networks(
        init_actor=init_actor,
        policy=policy,
        init_critics=critics.init,
        critics=critics.apply,
    )


def actor_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a rate for each part of the actor's parameters; a learned weight is bounded."""
    weight = optax.adam(config.weight_learning_rate)
    return optimizers.by_name(
        {
            "policy": optax.adam(config.actor_learning_rate),
            "behavior": optax.adam(config.behavior_learning_rate),
            "log_weight": optimizers.bounded(weight, *LOG_WEIGHT_BOUNDS),
        }
    )


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The clone that densities are compared with; none where there is an autoencoder.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "brac", spec)
    if config.divergence not in ("kl", "kl_sampled"):
        return {}
    density = bc.ContinuousConfig(
        layers=config.actor_layers,
        log_std_bounds=config.log_std_bounds,
        learning_rate=config.behavior_learning_rate,
        weight_decay=0.0,
    )
    learner = bc.make(bc.Config(batch_size=config.batch_size, continuous=density), spec)

    def clone(state: bc.State, context: Context) -> Params:
        del context
        return state.params

    stage = Stage(
        learner=with_inputs(learner, config.inputs),
        num_updates=config.behavior_updates,
        outputs=clone,
    )
    return {CLONE: stage}


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "brac", spec)
    behavior = behavior_model(config, spec)

    def weight(agent: Agent) -> Array:
        if config.threshold is None:
            return jnp.float32(config.weight)
        return jnp.exp(agent.state.actor["log_weight"])

    def weighed(agent: Agent, context: Context, observations: Observation, key: Key) -> Array:
        return weight(agent) * behavior.divergence(agent, context, observations, key)

    return Method(
        networks=networks(config, spec, behavior),
        backup=candidates.best_backup(
            config.gamma,
            config.num_next_actions,
            minimum_weight=config.minimum_weight,
            penalty=weighed if config.penalize_values else candidates.no_penalty,
        ),
        actor_objective=objective(
            behavior,
            weight,
            threshold=config.threshold,
            constraint_updates=config.constraint_updates,
        ),
        actor_optimizer=actor_optimizer(config),
        critic_optimizer=optax.adam(config.critic_learning_rate),
        follow=actor_critic.polyak(config.tau),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Its policy is the actor's; among several candidates the best by the first critic acts.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    update = method(config, spec)
    learner = actor_critic.make(update, memory.Transitions(config.batch_size))
    policy = policy_network(config, spec, config.log_std_limit).apply
    if config.num_candidates > 1:
        learner = candidates.acting_by_best(
            learner,
            update.networks._replace(policy=policy),
            config.num_candidates,
            select=policy_params,
        )
    else:
        learner = learner._replace(
            policy=distributions.as_policy(policy),
            policy_params=lambda state, context: policy_params(state.actor),
        )
    return with_inputs(learner, config.inputs)


def policy_params(actor: Params) -> Params:
    """The policy's among the actor's parameters."""
    return actor["policy"]
