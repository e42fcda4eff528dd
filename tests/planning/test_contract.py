"""What holds for every planner: shapes, independent roots, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planning_examples import GAMMA, KEY, random_embeddings, random_model

from offline_mbrl.planning import lookahead, mcts, one_step

A, B = 3, 6
SIZES = {"num_actions": A, "gamma": GAMMA}
MODEL, PARAMS = random_model(A)
DETERMINISTIC = {
    "exact": one_step.exact(MODEL, **SIZES),
    "softmax_backup": lookahead.softmax_backup(MODEL, **SIZES, depth=2),
    "max_backup": lookahead.max_backup(MODEL, **SIZES, depth=2),
    "gumbel without noise": mcts.gumbel(MODEL, **SIZES, num_simulations=4, gumbel_scale=0.0),
}
PLANNERS = DETERMINISTIC | {
    "sampled": one_step.sampled(MODEL, **SIZES, num_samples=4),
    "muzero": mcts.muzero(MODEL, **SIZES, num_simulations=4),
    "muzero_q": mcts.muzero_q(MODEL, **SIZES, num_simulations=4),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_every_field_has_the_roots_in_front(name):
    plan = jax.eval_shape(PLANNERS[name], PARAMS, random_embeddings(B), KEY)
    candidates = (B, 4 if name == "sampled" else A)
    shapes = [field.shape for field in plan]
    assert shapes == [(B,), candidates, candidates, candidates, (B,), (B,)]
    assert jnp.issubdtype(plan.action.dtype, jnp.integer)
    assert jnp.issubdtype(plan.actions.dtype, jnp.integer)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_root_is_planned_alike_whatever_its_neighbors(name):
    planner, embeddings = jax.jit(DETERMINISTIC[name]), random_embeddings(2 * B)
    first = planner(PARAMS, embeddings[:B], KEY)
    mixed = planner(PARAMS, jnp.concatenate([embeddings[B + 3 :], embeddings[:3]]), KEY)
    for field in ("weights", "qvalues", "value", "improved_value"):
        ours, theirs = getattr(first, field)[:3], getattr(mixed, field)[3:]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["exact", "sampled", "max_backup", "muzero"])
def test_a_loss_towards_a_plan_with_stopped_inputs_has_the_gradient_of_constant_weights(name):
    embeddings = random_embeddings(B)

    def loss(params, weights, actions):
        logits = jax.vmap(MODEL.predict, (None, 0))(params, embeddings).policy_logits
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), actions, axis=1)
        return -jnp.sum(weights * log_probs)

    @jax.jit
    def both(params):
        def planned(params):
            plan = PLANNERS[name](*jax.lax.stop_gradient((params, embeddings)), KEY)
            return loss(params, plan.weights, plan.actions)

        plan = PLANNERS[name](params, embeddings, KEY)
        return jax.grad(planned)(params), jax.grad(loss)(params, plan.weights, plan.actions)

    ours, constant = both(PARAMS)
    assert optax.tree.norm(ours) > 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, constant
    )


def test_planners_take_embeddings_of_any_rank():
    flat, params = MODEL, PARAMS
    square = flat._replace(
        dynamics=lambda params, x, a: flat.dynamics(params, x.reshape(8), a).reshape(2, 2, 2),
        predict=lambda params, x: flat.predict(params, x.reshape(8)),
    )
    embeddings = random_embeddings(B)
    for make in (
        one_step.exact,
        lambda model, **sizes: lookahead.max_backup(model, **sizes, depth=2),
    ):
        plans = [
            jax.jit(make(model, **SIZES))(params, x, KEY)
            for model, x in ((flat, embeddings), (square, embeddings.reshape(B, 2, 2, 2)))
        ]
        np.testing.assert_allclose(plans[0].weights, plans[1].weights, rtol=1e-5)
    searched = jax.eval_shape(
        mcts.gumbel(square, **SIZES, num_simulations=2), params, embeddings.reshape(B, 2, 2, 2), KEY
    )
    assert searched.weights.shape == (B, A)
