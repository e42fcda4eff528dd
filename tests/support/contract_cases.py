"""The cases that stand beside the registrations, and their stages before any training."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl import policies, registry
from offline_mbrl.data import normalize
from offline_mbrl.problems import toy
from offline_mbrl.training import fit
from offline_mbrl.training.stages import MAIN, of_algorithm
from offline_mbrl.types import Actor, Context, Policy, Stage

KEY = jax.random.key(0)
CASES = {
    name if not index else f"{name}/{index}": (algorithm, case)
    for name, algorithm in registry.ALGORITHMS.items()
    for index, case in enumerate(algorithm.cases)
}


class StageCase(NamedTuple):
    """One stage of a case, with what it sees."""

    stage: Stage
    dataset: object
    context: Context  # of a single seed


@functools.cache
def problem(name: str) -> toy.Problem:
    return CASES[name][1].problem()


def config(name: str):
    """The settings with which a case is tested and learns."""
    algorithm, case = CASES[name]
    names = {field.name for field in dataclasses.fields(algorithm.config)}
    batch_size = {"batch_size": 32} if "batch_size" in names else {}
    settings = {**case.config, **batch_size, **case.learning, "num_updates": case.num_updates}
    return algorithm.config(**settings)


def stage_names(name: str) -> list[str]:
    """The stages of a case, the last of them the main one."""
    return [*of_algorithm(CASES[name][0], config(name), problem(name).spec)]


@functools.cache
def stages(name: str) -> dict[str, StageCase]:
    """Each stage with its data and what freshly initialized stages before it hand on."""
    algorithm, _ = CASES[name]
    cases = {}
    upstream = {}
    for stage_name, stage in of_algorithm(algorithm, config(name), problem(name).spec).items():
        dataset = stage.prepare(problem(name).dataset)
        statistics = (stage.statistics or normalize.statistics)(dataset)
        context = Context(statistics=statistics, upstream=dict(upstream))
        cases[stage_name] = StageCase(stage=stage, dataset=dataset, context=context)
        if stage_name != MAIN:
            state = fit.init(stage.learner, dataset, key=jax.random.key(1), context=context)
            outputs = stage.outputs or stage.learner.policy_params
            upstream[stage_name] = fit.over_seeds(outputs, state, context)
    return cases


@functools.cache
def start(name: str, stage: str):
    """Learner, dataset, context, state, cache and an example batch of a fresh stage."""
    case = stages(name)[stage]
    learner = case.stage.learner

    @jax.jit
    def initialize(dataset, context):
        key_sample, key_init = jax.random.split(jax.random.key(0))
        example = learner.sample(dataset, None, key_sample)
        return learner.init(key_init, example, context), learner.init_cache(example), example

    state, cache, example = initialize(case.dataset, case.context)
    return learner, case.dataset, case.context, state, cache, example


def memoryless(policy: Policy | Actor) -> Policy:
    """The policy; of an actor the actions that it takes as the first of an episode.

    Its greedy action may need a key: each observation has its own, for with the same key everywhere
    a planner's error would be the same everywhere, and add up.
    """
    if isinstance(policy, Policy):
        return policy
    actor = policies.as_actor(policy)

    def begin(params, observation, key, act):
        return act(params, actor.init(params, observation, key), observation, key)[0]

    return Policy(
        sample=lambda params, observation, key: begin(params, observation, key, actor.act),
        mode=lambda params, observation: begin(
            params, observation, own_key(observation), actor.act_greedily
        ),
    )


def own_key(observation):
    """A key that is a function of one observation."""
    total = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(observation))
    return jax.random.fold_in(KEY, jax.lax.bitcast_convert_type(total, jnp.uint32))
