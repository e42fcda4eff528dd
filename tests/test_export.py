"""A policy as a folder: what is written is what acts, and what is damaged is refused."""

import dataclasses
import json
import subprocess
import sys
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import config_json, export, registry
from offline_mbrl.data import normalize
from offline_mbrl.types import (
    Actor,
    Algorithm,
    BoundedActions,
    Context,
    DiscreteActions,
    EnvironmentSpec,
    Learner,
    ModelParams,
    UsageError,
)

SEEDS = (3, 5)
DISCRETE = EnvironmentSpec(jax.ShapeDtypeStruct((2, 3), jnp.float32), DiscreteActions(4))
BOUNDED = EnvironmentSpec(
    jax.ShapeDtypeStruct((3,), jnp.float32), BoundedActions((-2.0, 0.0), (2.0, 10.0))
)
OBSERVATION = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def exported(folder, name="bc", spec=DISCRETE):
    """The policy and parameters that were written, of two seeds."""
    algorithm = registry.lookup(name)
    config = algorithm.config(num_updates=3)
    learner = algorithm.make(config, spec)
    observation = jnp.zeros(spec.observation.shape)
    statistics = normalize.Statistics(observation, observation + 1)
    context = Context(statistics=statistics, upstream={"model": ()})

    def init(key):
        return learner.policy_params(learner.init(key, None, context), context)

    params = jax.vmap(init)(jax.random.split(jax.random.key(0), len(SEEDS)))
    params = jax.tree.map(  # heads start at zero, where every policy is the same
        lambda leaf: leaf + jax.random.normal(jax.random.key(1), leaf.shape), params
    )
    export.save(
        folder,
        algorithm=name,
        config=config,
        spec=spec,
        params=params,
        seeds=SEEDS,
        description={"step": 3},
    )
    return learner.policy, params


def test_what_was_saved_is_read_back(tmp_path):
    _, params = exported(tmp_path / "policy")
    found = export.load(tmp_path / "policy")
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert found.spec == DISCRETE
    assert found.description["step"] == 3
    assert found.description["seeds"] == [3, 5]
    assert found.description["config"]["num_updates"] == 3


def test_a_loaded_policy_acts_as_the_learner_did_greedily_and_by_sampling(tmp_path):
    policy, params = exported(tmp_path)
    for index, seed in enumerate(SEEDS):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], params)
        act = export.load_policy(tmp_path, seed=seed)
        assert act(OBSERVATION) == policy.mode(one, OBSERVATION)
        keys = jax.random.split(jax.random.key(2), 20)
        assert [int(act(OBSERVATION, key)) for key in keys] == [
            int(policy.sample(one, OBSERVATION, k)) for k in keys
        ]
    first = export.load_policy(tmp_path)
    np.testing.assert_array_equal(
        first(OBSERVATION.tolist()), export.load_policy(tmp_path, seed=3)(OBSERVATION)
    )


def test_continuous_actions_come_in_the_simulators_units(tmp_path):
    policy, params = exported(tmp_path, "skeleton", BOUNDED)
    unit = policy.mode(jax.tree.map(lambda leaf: leaf[0], params), OBSERVATION[0])
    expected = np.array([-2.0, 0.0]) + (np.asarray(unit) + 1) / 2 * np.array([4.0, 10.0])
    np.testing.assert_allclose(export.load_policy(tmp_path)(OBSERVATION[0]), expected, rtol=1e-6)


def test_an_observation_of_another_shape_is_refused_with_both(tmp_path):
    exported(tmp_path)
    with pytest.raises(UsageError, match=r"one observation of shape \(2, 3\), got \(3,\)"):
        export.load_policy(tmp_path)(np.zeros(3))
    with pytest.raises(UsageError, match=r"got \(7, 2, 3\)"):
        export.load_policy(tmp_path)(np.zeros((7, 2, 3)))


def test_a_seed_that_is_not_there_is_refused(tmp_path):
    exported(tmp_path)
    with pytest.raises(UsageError, match="has no seed 4: it holds 3, 5"):
        export.load_policy(tmp_path, seed=4)


@pytest.mark.parametrize("name", [export.PARAMS, export.POLICY])
def test_a_missing_file_is_named(tmp_path, name):
    exported(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=rf"holds no policy \({name} is missing\)"):
        export.load(tmp_path)


def test_a_flipped_bit_in_the_arrays_is_detected(tmp_path):
    exported(tmp_path)
    path = tmp_path / export.PARAMS
    for position in np.random.default_rng(0).integers(0, path.stat().st_size, 5):
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"params.npz is damaged"):
            export.load(tmp_path)
        content[position] ^= 1
        path.write_bytes(content)
    export.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda about: "{", "is damaged"),
        (lambda about: "[]", "is damaged"),
        (lambda about: json.dumps({**about, "algorithm": "rosmoo"}), "unknown algorithm 'rosmoo'"),
        (
            lambda about: json.dumps({**about, "config": {"learnin_rate": 1}}),
            "has no setting 'learnin_rate'",
        ),
        (lambda about: json.dumps({**about, "spec": {}}), "does not describe a policy"),
        (lambda about: json.dumps({k: v for k, v in about.items() if k != "spec"}), "is damaged"),
    ],
)
def test_a_damaged_description_is_one_clear_error(tmp_path, change, named):
    exported(tmp_path)
    path = tmp_path / export.POLICY
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(UsageError, match=named):
        export.load(tmp_path)


def test_there_is_no_pickle_in_an_export(tmp_path):
    exported(tmp_path)
    with np.load(tmp_path / export.PARAMS, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(UsageError, match=r"cannot write /dev/null/policy: Not a directory"):
        export.save(
            export.Path("/dev/null/policy"),
            algorithm="bc",
            config=registry.lookup("bc").config(),
            spec=DISCRETE,
            params={"a": np.zeros(1)},
            seeds=[0],
        )


# --- policies with memory, and their parameters ---


class Plan(NamedTuple):
    """A record of this file."""

    model: ModelParams
    layers: tuple


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the counting algorithm."""

    num_updates: int = 1


def counting(config, spec):
    """A learner whose policy acts with the number of steps, scaled by a parameter."""

    def init(params, observation, key):
        return jnp.zeros(())

    def act(params, carry, observation, key):
        scale = params["plan"].model.network["scale"] + params["plan"].layers[1]
        return scale * carry * jnp.ones(2), carry + 1

    def act_greedily(params, carry, observation, key):
        return jnp.zeros(2), carry + 1

    return Learner(
        sample=None,
        init=None,
        step=None,
        policy=Actor(init=init, act=act, act_greedily=act_greedily),
        policy_params=None,
    )


def test_a_policy_with_memory_acts_with_its_carry_and_its_records(tmp_path, monkeypatch):
    algorithm = Algorithm(config=Config, make=counting)
    monkeypatch.setattr(export.registry, "lookup", lambda name: algorithm)
    model = ModelParams(network={"scale": jnp.array([0.1, 0.2])}, statistics=(), elites=None)
    params = {"plan": Plan(model=model, layers=(jnp.ones((2, 3)), jnp.array([0.1, 0.3])))}
    export.save(
        tmp_path, algorithm="counting", config=Config(), spec=BOUNDED, params=params, seeds=SEEDS
    )
    exported = export.load(tmp_path)
    assert jax.tree.structure(exported.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, exported.params, params)
    actor = export.load_policy(tmp_path, seed=5)
    key = jax.random.key(0)
    carry = actor.init(OBSERVATION[0], key)
    for step in range(3):
        action, carry = actor.act(carry, OBSERVATION[0], key)
        unit = 0.5 * step
        np.testing.assert_allclose(action, [2 * unit, 5 + 5 * unit], rtol=1e-6)
    action, carry = actor.act_greedily(carry, OBSERVATION[0], key)
    np.testing.assert_allclose(action, [0, 5])
    assert carry == 4


def test_folders_of_nested_dicts_without_a_structure_are_read(tmp_path):
    _, params = exported(tmp_path)
    path = tmp_path / export.POLICY
    about = json.loads(path.read_text())
    del about["structure"]
    path.write_text(json.dumps(about))
    jax.tree.map(np.testing.assert_array_equal, export.load(tmp_path).params, params)


def test_a_record_that_is_not_there_is_refused(tmp_path):
    exported(tmp_path)
    path = tmp_path / export.POLICY
    about = json.loads(path.read_text())
    about["structure"] = {"kind": "record", "class": "os:system", "branches": {}}
    path.write_text(json.dumps(about))
    with pytest.raises(UsageError, match="no record os:system"):
        export.load(tmp_path)


# --- configs ---


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """One member of a union."""

    members: int = 5
    sizes: tuple[int, ...] = (3, 4)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Another one, with settings of the first."""

    members: int = 5
    components: int = 2


@dataclasses.dataclass(frozen=True)
class Outer:
    """A config with a union."""

    model: Annotated[Gaussian | Mixture, "a choice"]
    fallback: Mixture | None = None
    nested: Gaussian = Gaussian()
    name: str | None = None


@pytest.mark.parametrize(
    "config",
    [
        Outer(model=Gaussian(sizes=(7,))),
        Outer(model=Mixture(components=3), fallback=Mixture(members=1), name="x"),
        Outer(model=Mixture()),
    ],
)
def test_a_config_survives_json_whatever_member_of_a_union_it_holds(config):
    text = json.dumps(config_json.to_json(config))
    assert config_json.from_json(Outer, json.loads(text)) == config


def test_a_union_without_its_class_is_read_where_only_one_member_has_the_settings():
    outer = config_json.from_json(Outer, {"model": {"members": 2, "components": 4}})
    assert outer == Outer(model=Mixture(members=2, components=4))
    with pytest.raises(UsageError, match=r"\(not stated\) is not one of Gaussian, Mixture"):
        config_json.from_json(Outer, {"model": {"members": 2}})
    with pytest.raises(UsageError, match="class Flow is not one of Gaussian, Mixture"):
        config_json.from_json(Outer, {"model": {"class": "Flow"}})


# --- what reading a policy loads ---

READ = """if True:
    import sys, numpy as np
    import offline_mbrl
    policy = offline_mbrl.load_policy(sys.argv[1])
    policy(np.zeros((2, 3)))
    print(*(name for name in sys.modules if name.startswith("offline_mbrl.")))
"""


def test_reading_a_policy_loads_no_training_code_and_no_other_algorithm(tmp_path):
    exported(tmp_path)
    command = [sys.executable, "-c", READ, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rooms = {name.split(".")[1] for name in shown.split()}
    assert "learners" in rooms
    assert not rooms & {"training", "runs", "algorithms", "environments", "evaluation", "ope"}
    algorithms = {name for name in shown.split() if name.startswith("offline_mbrl.learners.")}
    assert algorithms == {"offline_mbrl.learners.bc"}


def test_the_module_itself_loads_no_optimizer():
    program = "import sys, offline_mbrl.export; print('optax' in sys.modules)"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
