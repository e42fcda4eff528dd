"""Online training: the ring, simulators side by side, and a run with a known best action."""

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from offline_mbrl.collect import online
from offline_mbrl.data import ring
from offline_mbrl.learners import sac
from offline_mbrl.types import (
    BoundedActions,
    Context,
    EnvironmentSpec,
    Learner,
    Transition,
    UsageError,
)

SPEC = EnvironmentSpec(jax.ShapeDtypeStruct((2,), np.float32), BoundedActions((-1.0,), (1.0,)))
BEST = 0.4
SHARP = 4.0


class Counting(dm_env.Environment):
    """Observes (seed, step), rewards actions near BEST, and terminates after three steps."""

    def __init__(self, seed):
        self.seed = seed
        self.count = 0

    def reset(self):
        self.count = 0
        return dm_env.restart(self.observation())

    def step(self, action):
        self.count += 1
        reward = 1.0 - SHARP * (float(action[0]) - BEST) ** 2
        if self.count == 3:
            return dm_env.termination(reward, self.observation())
        return dm_env.transition(reward, self.observation())

    def observation(self):
        return np.array([self.seed % 3, self.count], np.float32)

    def observation_spec(self):
        return specs.Array((2,), np.float32)

    def action_spec(self):
        return specs.BoundedArray((1,), np.float32, -1, 1)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(online.environments, "make", lambda name, seed: Counting(seed))


def transitions(values):
    column = jnp.asarray(values, jnp.float32)
    return Transition(
        observation=column[:, None],
        action=column[:, None],
        reward=column,
        discount=jnp.ones_like(column),
        next_observation=column[:, None] + 1,
    )


def example():
    return jax.tree.map(lambda leaf: leaf[0], transitions([0.0]))


def learner(**settings):
    rates = {f"{part}_learning_rate": 1e-2 for part in ("actor", "critic", "temperature")}
    return sac.make(
        sac.Config(actor_layers=(16,), critic_layers=(32, 32), gamma=0.0, **rates, **settings), SPEC
    )


# --- replay ---


def test_a_full_ring_holds_the_newest_transitions_and_nothing_else():
    replay = ring.empty(example(), 5)
    for first in (0, 3, 6):
        replay = ring.store(replay, transitions(np.arange(first, first + 3)))
    assert replay.num_stored == 9
    assert sorted(replay.transitions.reward.tolist()) == [4, 5, 6, 7, 8]
    np.testing.assert_array_equal(
        replay.transitions.next_observation, replay.transitions.observation + 1
    )


def test_only_what_was_stored_is_sampled_and_all_of_it():
    replay = ring.store(ring.empty(example(), 50), transitions([3.0, 5.0, 9.0]))
    batch = ring.sample(replay, 300, jax.random.key(0))
    counts = {
        value: int((batch.reward == value).sum()) for value in np.unique(batch.reward).tolist()
    }
    assert set(counts) == {3.0, 5.0, 9.0}
    assert min(counts.values()) > 60
    np.testing.assert_array_equal(batch.next_observation[:, 0], batch.reward + 1)


def test_the_rounds_updates_are_the_learners_own_one_after_another():
    def step(state, context, batch, key):
        return state * 2 + jnp.max(batch.reward), {"largest": jnp.max(batch.reward)}

    counting = Learner(
        sample=None,  # type: ignore[arg-type]
        init=None,  # type: ignore[arg-type]
        step=step,
        policy=None,
        policy_params=lambda state, context: state,
    )
    replay = ring.empty(example(), 8)
    state, replay, metrics = online.learn(
        counting,
        jnp.float32(1),
        replay,
        transitions([7.0, 7.0]),
        jax.random.key(0),
        num_updates=3,
        batch_size=4,
    )
    assert state == ((1 * 2 + 7) * 2 + 7) * 2 + 7  # the new transitions are already there
    assert (replay.num_stored, metrics["largest"]) == (2, 7)


# --- simulators ---


def test_steps_of_simulators_side_by_side_are_their_own_and_a_new_episode_starts_at_once():
    running = [Counting(1), Counting(2)]
    offered = []

    def act(observations):
        offered.append(observations)
        return np.array([[0.4], [-0.6]]), observations[:, 0]

    observations, transitions, is_last = online.play(running, online.reset(running), act, 4)
    np.testing.assert_array_equal(is_last, [0, 0, 0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(transitions.observation[:, 0], [1, 2] * 4)
    np.testing.assert_array_equal(transitions.observation[:, 1], [0, 0, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(transitions.next_observation[:, 1], [1, 1, 2, 2, 3, 3, 1, 1])
    np.testing.assert_array_equal(transitions.discount, [1, 1, 1, 1, 0, 0, 1, 1])
    np.testing.assert_allclose(transitions.reward, [1, 1 - SHARP] * 4, atol=1e-6)
    np.testing.assert_array_equal(transitions.extras, [1, 2] * 4)
    np.testing.assert_array_equal(np.concatenate(offered), transitions.observation)
    np.testing.assert_array_equal(observations, [[1, 1], [2, 1]])
    assert {leaf.dtype for leaf in jax.tree.leaves(transitions)} == {np.dtype(np.float32)}


def test_simulators_differ_among_themselves_and_follow_from_the_seed(counting):
    seeds = [
        [simulator.seed for simulator in online.simulators("any", 4, entropy=[seed, 7])]
        for seed in (0, 0, 1)
    ]
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 4


# --- a run ---


def run(seed=0, num_steps=640, snapshots=(640,), **settings):
    config = online.Config(
        num_steps=num_steps,
        num_simulators=4,
        round_steps=4,
        batch_size=32,
        warmup_steps=64,
        **settings,
    )
    return list(online.train(learner(), "any", config, seed=seed, snapshots=snapshots))


def test_soft_actor_critic_finds_the_best_action_online(counting):
    states = np.array([[1.0, 2.0], [0.0, 1.0]], np.float32)
    mode = jax.vmap(learner().policy.mode, (None, 0))
    before, after = (mode(snapshot.params, states) for snapshot in run(snapshots=[16, 640]))
    assert (np.abs(before - BEST) > 0.2).all()
    assert (np.abs(after - BEST) < 0.12).all()


def test_snapshots_are_taken_at_the_first_round_that_reaches_them(counting):
    snapshots = run(num_steps=160, snapshots=[1, 16, 17, 100])
    assert [snapshot.step for snapshot in snapshots] == [16, 16, 32, 112]
    first, second, third, last = (jax.tree.leaves(snapshot.params)[1] for snapshot in snapshots)
    np.testing.assert_array_equal(first, second)  # before the first update
    np.testing.assert_array_equal(first, third)
    assert not np.array_equal(first, last)


def test_a_run_follows_from_its_seed(counting):
    first, again, other = (
        run(seed=seed, num_steps=160, snapshots=[160])[0].params for seed in (3, 3, 4)
    )
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, again)))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, other)))


def test_every_call_acts_with_new_keys():
    act = online.acting(learner().policy, jax.random.key(0))
    state = learner().init(jax.random.key(0), (), Context())
    params = learner().policy_params(state, Context())
    first, second = (act(params, np.zeros((3, 2), np.float32))[0] for _ in range(2))
    assert len(np.unique(np.concatenate([first, second]))) == 6


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        ([], "increasing"),
        ([20, 10], "increasing"),
        ([0, 10], "at least 1"),
        ([10, 700], "700, but the run has 640"),
    ],
)
def test_moments_outside_the_run_are_refused_before_anything_runs(snapshots, message):
    with pytest.raises(UsageError, match=message):
        online.train(learner(), "any", online.Config(num_steps=640), seed=0, snapshots=snapshots)


def test_a_policy_that_is_no_longer_finite_is_refused(counting, monkeypatch):
    monkeypatch.setattr(
        Counting, "step", lambda self, action: dm_env.transition(np.nan, self.observation())
    )
    with pytest.raises(UsageError, match="not finite after 160 steps"):
        run(num_steps=160, snapshots=[160])
