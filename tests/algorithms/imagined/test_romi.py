"""ROMI and FOMI: whose data model and proposal see, which rows are imagined, and how many."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.algorithms.imagined import proposals, romi, rows
from offline_mbrl.data import memory, reverse, ring
from offline_mbrl.learners import cql
from offline_mbrl.models import fitting, gaussian_ensemble
from offline_mbrl.networks import conditional_vae
from offline_mbrl.problems import linear_quadratic as control
from offline_mbrl.rollouts import imagination
from offline_mbrl.training.stages import plain, train_stages
from offline_mbrl.types import Context, Learner, Transition

KEY = jax.random.key(0)
PROBLEM = control.linear_quadratic(0, num_episodes=100)
SPEC = PROBLEM.spec
DATA = PROBLEM.dataset
DYNAMICS = gaussian_ensemble.Config(
    num_members=2,
    hidden_layers=(32,),
    decay=(),
    fit=fitting.Config(
        num_updates=800,
        batch_size=64,
        learning_rate=5e-3,
        refresh_every=200,
        weight_decay=0.0,
    ),
)
SETTINGS = {
    "termination": "never",
    "dynamics": DYNAMICS,
    "proposal": proposals.ProposalConfig(kind="uniform"),
    "horizon": 3,
    "num_starts": 50,
    "num_rows": 600,
}


def trained(config):
    """What the stages before the policy's hand on."""
    run_stage = plain(seeds=None, block_updates=400)
    return train_stages(romi.pretrain(config, SPEC), DATA, key=KEY, run_stage=run_stage)


@pytest.fixture(scope="module")
def backward():
    return trained(romi.Config(**SETTINGS))


@pytest.fixture(scope="module")
def forward():
    return trained(romi.ForwardConfig(**SETTINGS))


def imagined_rows(end):
    """The rows that were handed on, those that are stored."""
    stored = end.upstream[rows.NAME]
    count = int(ring.size(stored))
    return jax.tree.map(lambda leaf: np.asarray(leaf[:count]), stored.transitions)


def in_data(observation):
    """Whether each of the observations `[N, 2]` is one of the data's."""
    return np.array([(DATA.observation == row).all(axis=1).any() for row in observation])


# --- what is imagined ---


def test_rows_of_both_directions_obey_the_systems_dynamics(backward, forward):
    for end in (backward, forward):
        row = imagined_rows(end)
        assert len(row.reward) == 600
        expected = row.observation @ control.DYNAMICS.T + row.action @ control.DRIVE.T
        scale = np.std(row.next_observation, axis=0)
        error = np.sqrt(np.mean((row.next_observation - expected) ** 2, axis=0))
        assert (error < 0.15 * scale).all()


def test_backward_paths_end_in_the_data_and_forward_ones_begin_there(backward, forward):
    # A third of the rows of three steps are last, or first, steps.
    row = imagined_rows(backward)
    assert in_data(row.next_observation).sum() == 200
    assert in_data(row.observation).sum() == 0
    row = imagined_rows(forward)
    assert in_data(row.observation).sum() == 200
    assert in_data(row.next_observation).sum() == 0


def test_the_stages_are_named_by_the_direction_of_time():
    config = romi.Config(proposal=proposals.ProposalConfig(kind="clone", num_updates=1))
    assert list(romi.pretrain(config, SPEC)) == ["reverse_model", "proposal", "imagination"]
    config = romi.ForwardConfig(proposal=proposals.ProposalConfig(kind="uniform"))
    assert list(romi.pretrain(config, SPEC)) == ["model", "imagination"]


@pytest.mark.parametrize("terminals", ["leave_out", "halt", "extend"])
def test_terminals_are_left_out_of_model_and_starts_or_kept_in_both(terminals):
    discount = DATA.discount.copy()
    discount[DATA.starts[::7]] = 0
    data = DATA._replace(discount=discount)
    config = romi.Config(**SETTINGS, terminals=terminals)
    stages = romi.pretrain(config, SPEC)
    kept = reverse.without_terminals(data) if terminals == "leave_out" else data
    expected = reverse.reversed_in_time(kept)
    model = stages["reverse_model"].prepare(data)
    assert len(model.starts) + len(model.held_out) == len(expected.starts)
    np.testing.assert_array_equal(model.observation, expected.observation)
    np.testing.assert_array_equal(stages["imagination"].prepare(data).starts, expected.starts)


def test_starts_and_real_rows_count_by_return_where_asked():
    config = romi.Config(**SETTINGS, by_return=True)
    best = np.argmax(np.add.reduceat(DATA.reward, np.arange(0, len(DATA.reward), 21)))
    for prepared in (
        romi.prepare(config, DATA),
        romi.pretrain(config, SPEC)["imagination"].prepare(DATA),
    ):
        counts = np.bincount(prepared.starts // 21, minlength=100)
        assert counts[best] == counts.max()
        assert counts.min() == 0
    plain_config = dataclasses.replace(config, by_return=False)
    assert romi.prepare(plain_config, DATA) is DATA


# --- the proposals ---


@pytest.mark.parametrize("kind", ["autoencoder", "clone"])
def test_a_proposal_of_reversed_data_is_the_action_that_led_there(kind):
    """In data where `s' = a`, the reverse policy is the state itself, the forward one is noise."""
    generator = np.random.default_rng(0)
    action = generator.uniform(-0.9, 0.9, (500, 1))
    data = memory.Dataset.from_arrays(
        {
            "observation": generator.normal(size=(500, 2)),
            "next_observation": np.concatenate([action, generator.normal(size=(500, 1))], axis=1),
            "action": action,
            "reward": np.zeros(500),
            "is_terminal": np.zeros(500, bool),
            "is_truncated": np.ones(500, bool),
        }
    )
    config = proposals.ProposalConfig(
        kind=kind, num_updates=1_500, batch_size=32, layers=(32,), learning_rate=3e-3
    )
    proposal = proposals.make(config, SPEC, prepare=reverse.reversed_in_time)
    end = train_stages(
        proposal.stages, data, key=KEY, run_stage=plain(seeds=None, block_updates=500)
    )
    params = proposal.params(Context(upstream=end.upstream))
    states = jnp.asarray(data.observation[data.starts + 1][:100])
    chosen = jax.vmap(proposal.policy.mode, (None, 0))(params, states)
    assert np.mean(np.abs(chosen[:, 0] - states[:, 0])) < 0.1


def test_an_autoencoders_policy_decodes_clipped_latents_and_the_middle_one():
    vae = conditional_vae.make(2, 1, (8,))
    policy = conditional_vae.as_policy(vae)
    params = vae.init(KEY)
    observation = jnp.array([0.3, -0.2])
    action = policy.sample(params, observation, KEY)
    generated = conditional_vae.generate(vae, params, observation, KEY)
    np.testing.assert_allclose(action, np.tanh(generated), rtol=1e-6)
    middle = vae.decode(params, observation, jnp.zeros(2))
    np.testing.assert_allclose(policy.mode(params, observation), np.tanh(middle), rtol=1e-6)


# --- batches ---


def counting_learner(batch_size):
    """Reports what is in its batches."""

    def step(state, context, batch, key):
        del context, key
        return state, {"imagined": jnp.sum(batch.extras["is_imagined"]), "all": batch.reward.size}

    return Learner(
        sample=memory.Transitions(batch_size),
        init=lambda key, example, context: (),
        step=step,
        policy=None,
        policy_params=lambda state, context: (),
    )


@pytest.mark.parametrize(
    ("batch_size", "fraction", "imagined"), [(100, 0.7, 70), (256, 0.1, 25), (100, 0.3, 30)]
)
def test_so_many_rows_of_a_batch_are_imagined(batch_size, fraction, imagined):
    learner = rows.beside(counting_learner(batch_size), fraction)
    batch = learner.sample(DATA, None, KEY)
    row = Transition(*(leaf[0] for leaf in batch[:5]))
    stored = ring.store(ring.empty(row, 4), Transition(*(leaf[:2] for leaf in batch[:5])))
    for cache, expected in ((stored, imagined), (ring.empty(row, 4), 0)):
        _, counts = learner.step((), Context(upstream={rows.NAME: cache}), batch, KEY)
        assert (counts["imagined"], counts["all"]) == (expected, batch_size)


def test_imagination_is_made_once_and_is_no_part_of_the_policys_state(backward):
    learner = romi.make(romi.Config(**SETTINGS), SPEC)
    assert learner.refresh_every == 0
    assert learner.init_cache(None) == ()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(backward.upstream[rows.NAME]))
    assert size == 600 * 4 * (2 + 1 + 1 + 1 + 2) + 4
    assert imagination.marked(learner.sample(DATA, None, KEY)).extras["is_imagined"].sum() == 0


# --- settings ---


def test_presets_are_the_released_settings():
    maze = romi.Config(**romi.PRESETS["maze2d_umaze"])
    assert (maze.horizon, maze.proposal.kind, maze.imagined_fraction) == (5, "uniform", 0.7)
    assert not maze.by_return
    assert [
        romi.PRESETS[f"maze2d_{name}"]["imagined_fraction"] for name in ("medium", "large")
    ] == [
        0.5,
        0.3,
    ]
    walker = romi.CqlConfig(**romi.PRESETS["walker2d"])
    assert (walker.horizon, walker.proposal.kind) == (1, "autoencoder")
    assert (walker.imagined_fraction, walker.by_return) == (0.1, True)
    hopper = romi.CqlConfig(**romi.PRESETS["hopper"])
    assert (hopper.horizon, hopper.proposal.kind) == (5, "uniform")
    assert romi.Config(**romi.PRESETS["antmaze_medium"]).terminals == "halt"
    assert walker.policy == cql.Config(**cql.PRESETS["released"])
    for name, preset in romi.FORWARD_PRESETS.items():
        assert romi.ForwardConfig(**preset), name
