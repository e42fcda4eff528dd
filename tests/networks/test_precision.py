"""Updates in bfloat16: what is rounded, what is not, and how far a loss can move by it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.algorithms import rosmo
from offline_mbrl.data import memory, normalize, specs, splits
from offline_mbrl.learners import sac
from offline_mbrl.models import feedforward, kinds
from offline_mbrl.models.autoregressive import MaskedConfig
from offline_mbrl.networks import precision, residual, torsos
from offline_mbrl.problems import toy
from offline_mbrl.training import fit, flops
from offline_mbrl.types import Context, UsageError

UNIT = 2.0**-8  # relative rounding error of bfloat16, which has eight bits
# A layer rounds its weights, its inputs, their products' sum and, with the bias, its output. To
# first order each moves a loss by at most UNIT sum |weight * its derivative| of the layer; the
# second order is given as much again.
ROUNDINGS = 2 * 4
ROWS = 8
KEY = jax.random.key(0)


def _latent():
    problem = toy.chain(0, num_episodes=10)
    config = rosmo.Config(batch_size=ROWS, unroll_steps=2, td_steps=2)
    return rosmo.make(config, problem.spec), problem.dataset, Context()


def _arrays(num_rows=100):
    rng = np.random.default_rng(0)
    columns = {
        "observation": rng.normal(size=(num_rows, 3)).astype(np.float32),
        "action": rng.uniform(-1, 1, (num_rows, 2)).astype(np.float32),
        "reward": rng.normal(size=num_rows),
        "is_truncated": np.arange(num_rows) % 20 == 19,
        "is_terminal": np.zeros(num_rows, bool),
    }
    dataset = memory.Dataset.from_arrays(columns, action_bounds=(-1, 1))
    return splits.hold_out(dataset, fraction=0.1, by="transition", seed=0)


def _sac():
    dataset = _arrays()
    config = sac.Config(actor_layers=(16, 16), critic_layers=(16, 16), batch_size=ROWS)
    return sac.make(config, specs.spec_of(dataset)), dataset, Context()


def _explicit(config=feedforward.Config(hidden_layers=(16, 16), num_members=2)):
    dataset = _arrays()
    context = Context(statistics=normalize.full_statistics(dataset))
    return kinds.learner(config, kinds.make(config, specs.spec_of(dataset))), dataset, context


LEARNERS = {
    "latent": (_latent, ("loss/reward", "loss/value", "loss/policy")),
    "sac": (_sac, ("loss/critic", "loss/actor")),
    "explicit": (_explicit, ("loss/total",)),
}


@pytest.fixture(scope="module", params=LEARNERS)
def case(request):
    """A learner, its context, a state with noise on every weight, a batch, names of losses."""
    make, losses = LEARNERS[request.param]
    learner, dataset, context = make()
    batch = learner.sample(dataset, None, KEY)
    state = learner.init(KEY, batch, context)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    noisy = [
        leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
        for leaf in leaves
    ]
    return learner, context, tree.unflatten(noisy), batch, losses


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in flops.subprograms(equation.params):
            yield from equations(inner)


PRODUCTS = ("dot_general", "conv_general_dilated")


def results(function, *arguments, names=PRODUCTS):
    """Dtypes of the results of all operations of these names."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return [
        str(equation.outvars[0].aval.dtype)
        for equation in equations(jaxpr)
        if equation.primitive.name in names
    ]


# --- what is rounded ---


def test_hidden_layers_are_rounded_and_the_last_one_and_the_outputs_are_not():
    network = torsos.MLP((8, 8, 2), normalize_layers=True)
    x = jnp.ones(4)
    params = torsos.init(network, KEY, x)
    apply = precision.computing(lambda params, x: torsos.apply(network, params, x), "bfloat16")
    assert results(apply, params, x) == ["bfloat16", "bfloat16", "float32"]
    assert dtypes(jax.eval_shape(apply, params, x)) == {"float32"}


def test_convolutions_and_the_residual_stream_are_rounded_and_statistics_of_layers_are_not():
    sizes = residual.ResNetConfig(channels=4, blocks_representation=1, blocks_transition=1)
    cases = [
        (residual.Representation(sizes), (jnp.ones((16, 16, 2)),)),
        (residual.Dynamics(sizes, 3), (jnp.ones((1, 1, 4)), jnp.int32(1))),
    ]
    for module, inputs in cases:
        params = torsos.init(module, KEY, *inputs)

        def apply(params, inputs, module=module):
            return torsos.apply(module, params, *inputs)

        rounded = precision.computing(apply, "bfloat16")
        assert set(results(rounded, params, inputs)) == {"bfloat16"}
        assert set(results(rounded, params, inputs, names=("rsqrt",))) == {"float32"}
        assert dtypes(jax.eval_shape(rounded, params, inputs)) == {"float32"}
        inside = module.clone(dtype=jnp.bfloat16)
        assert dtypes(jax.eval_shape(functools.partial(apply, module=inside), params, inputs)) == {
            "bfloat16"
        }


def test_parameters_optimizer_and_losses_stay_float32_and_most_products_are_rounded(case):
    learner, context, state, batch, _ = case
    rounded = precision.learner_in(learner, "bfloat16")
    arguments = (state, context, batch, KEY)
    plain = jax.eval_shape(learner.step, *arguments)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), plain) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(rounded.step, *arguments)
    )
    assert "bfloat16" not in dtypes(plain)
    rounded_products = results(rounded.step, *arguments)
    assert {*rounded_products} == {"bfloat16", "float32"}  # hidden layers; last ones and supports
    assert set(results(learner.step, *arguments)) == {"float32"}


def test_float32_is_the_learner_itself_and_what_acts_is_not_rounded(case):
    learner = case[0]
    assert precision.learner_in(learner, "float32") is learner
    rounded = precision.learner_in(learner, "bfloat16")
    assert rounded.policy is learner.policy
    assert rounded.validate is learner.validate


# --- how far a loss moves ---


def of_rows(function, state, batch):
    """`function(state, a batch of one row)` for every row."""
    one = jax.tree.map(lambda leaf: leaf[:, None], batch)
    return jax.jit(jax.vmap(function, (None, 0)))(state, one)


def sensitivity(loss):
    """`sum |leaf * dloss/dleaf|` over the numbers of a state, for one row."""

    def of(state, row):
        leaves, tree = jax.tree.flatten(state)
        places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        def at(values):
            return loss(tree.unflatten(_put(leaves, places, values)), row)

        values = [leaves[i] for i in places]
        slopes = jax.grad(at)(values)
        terms = [jnp.where(b == 0, 0, a * b) for a, b in zip(values, slopes, strict=True)]
        return sum(jnp.sum(jnp.abs(term)) for term in terms)

    return of


def _put(leaves, places, values):
    full = list(leaves)
    for place, value in zip(places, values, strict=True):
        full[place] = value
    return full


def test_losses_move_by_no_more_than_roundings_can_move_them(case, monkeypatch):
    learner, context, state, batch, losses = case
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda tree: tree)  # targets are rounded too

    def loss(state, row):
        metrics = learner.validate(state, context, row, KEY)
        return sum(metrics[name] for name in losses)

    exact = of_rows(loss, state, batch)
    rounded = of_rows(precision.computing(loss, "bfloat16"), state, batch)
    bound = ROUNDINGS * UNIT * of_rows(sensitivity(loss), state, batch)
    assert np.all(rounded != exact)
    assert np.all(np.abs(rounded - exact) <= bound)


# --- what is refused ---


class Plain(nn.Module):
    """A network without a field `dtype`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


def test_a_network_without_a_dtype_is_refused_by_name():
    params = torsos.init(Plain(), KEY, jnp.ones(3))
    apply = precision.computing(lambda params, x: torsos.apply(Plain(), params, x), "bfloat16")
    with pytest.raises(UsageError, match="network Plain computes in float32 alone"):
        apply(params, jnp.ones(3))


def test_a_learner_without_a_flax_module_is_refused():
    masked = MaskedConfig(hidden_size=8, num_blocks=1, num_members=1)
    learner, dataset, context = _explicit(masked)
    rounded = precision.learner_in(learner, "bfloat16")
    with pytest.raises(UsageError, match="bfloat16 would change nothing"):
        fit.fit(rounded, dataset, key=KEY, num_updates=1, context=context)
