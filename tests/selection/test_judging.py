"""Judgements of several policies: ranks, verdicts, advice, and what is refused beforehand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection_examples import TINY, estimate

from offline_mbrl import policies as policy_functions
from offline_mbrl import selection
from offline_mbrl.ope import intervals, support
from offline_mbrl.problems import known
from offline_mbrl.selection import candidates as candidate_policies
from offline_mbrl.selection import estimators, judging, wording
from offline_mbrl.selection.comparison import voting
from offline_mbrl.selection.comparison.behavior import Logged
from offline_mbrl.selection.records import Policies
from offline_mbrl.types import UsageError

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    return known.linear_gaussian(0, num_episodes=40, horizon=10)


@pytest.fixture(scope="module")
def data(problem):
    return selection.prepare(problem.dataset, problem.spec)


def candidates(problem, names="abc"):
    return {
        name: (problem.policy, params)
        for name, params in zip(names, problem.target_params, strict=False)
    }


def test_five_lines_judge_policies(problem):
    data = selection.prepare(problem.dataset, problem.spec, gamma=0.9)
    steps = []
    judgement = selection.judge(
        candidates(problem),
        data,
        key=KEY,
        estimators=("model_ff", "fqe"),
        seeds=2,
        settings=dataclasses.replace(TINY, bootstrap=True),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {policy.name for policy in judgement.policies} == {"a", "b", "c"}
    for policy in judgement.policies:
        assert {"model_ff", "fqe", "magic"} <= set(policy.estimates)
        assert all(np.isfinite(found.value) for found in policy.estimates.values())
        assert "fqe" not in policy.votes.values()  # 20 updates are too few
    assert judgement.policies[0].name in selection.advice(judgement)


def test_judgements_depend_on_the_key_alone(problem, data):
    def values(key):
        judgement = selection.judge(
            candidates(problem), data, key=key, estimators=("model_ff",), seeds=1, settings=TINY
        )
        return {
            policy.name: float(policy.estimates["model_ff"].value) for policy in judgement.policies
        }

    assert values(KEY) == values(KEY)
    assert values(KEY) != values(jax.random.key(1))


def test_only_fits_that_were_resampled_stand_for_the_data(problem, data, monkeypatch):
    """Members of models see the same data whatever the seed; fitted values see a resample."""
    seeds = iter([0.0, 1.0, 2.0, 3.0] * 2)

    def invented(group):
        def estimates(learned, data, policies, settings, key):
            value = jax.tree.map(lambda leaf: leaf[None], estimate(next(seeds)))
            return dict.fromkeys(group.names[:1], value)

        return group._replace(estimate=estimates, learn=lambda data, settings, key: None)

    groups = {name: invented(estimators.GROUPS[name]) for name in ("model_ff", "fqe")}
    monkeypatch.setattr(judging, "lookup", groups.__getitem__)
    (judged,) = selection.judge(
        candidates(problem, "a"), data, key=KEY, estimators=("model_ff", "fqe"), seeds=4
    ).policies
    spread = np.std(np.arange(4.0), ddof=1) * intervals.widening(4)
    for name, count in (("model_ff", 1 / 4), ("fqe", 1 + 1 / 4)):
        expected = np.sqrt(0.01 + count * spread**2)
        np.testing.assert_allclose(judged.estimates[name].stderr, expected, rtol=1e-5)


def test_fits_that_disagree_widen_the_interval():
    combined = judging.over_seeds([estimate(1.0, a=0.0), estimate(3.0, a=1.0)], resampled=True)
    np.testing.assert_allclose(combined.value, 2.0)
    student = 12.7062 / 1.959964  # of one degree of freedom, over the normal quantile
    np.testing.assert_allclose(combined.stderr, np.sqrt(0.01 + 1.5 * 2.0 * student**2), rtol=1e-5)
    np.testing.assert_allclose(combined.diagnostics["a"], 0.5)


# --- votes, choices, advice ---

BEHAVIOR = Logged(within_horizon=estimate(1.0), continuing=estimate(1.0), undiscounted=2.0)


def judged(**estimates):
    """A judgement of policies by name, each with estimates by estimator."""
    return judging.judgement(estimates, BEHAVIOR)


def test_only_supported_and_settled_estimates_vote_and_a_family_once():
    judgement = judged(
        a={
            "model_ff": estimate(2.0, low_support=1.0),
            "fqe": estimate(3.0),
            "fqe_distributional": estimate(-50.0),
            "weighted_is_logged": estimate(np.inf),
        },
        b={"model_ff": estimate(9.0), "fqe": estimate(4.0, updates_too_few=1.0)},
        c={"model_ff": estimate(1e9, low_support=1.0)},
    )
    votes = {policy.name: policy.votes for policy in judgement.policies}
    assert votes == {"a": {"values": "fqe"}, "b": {"models": "model_ff"}, "c": {}}
    assert [policy.name for policy in judgement.policies] == ["b", "a", "c"]
    assert judgement.policies[-1].standing is None
    assert judgement.chosen == "b"


def test_every_estimator_belongs_to_one_family():
    members = [name for family in voting.FAMILIES.values() for name in family]
    named = [name for group in estimators.GROUPS.values() for name in group.names]
    assert sorted(members) == sorted(named)


def test_where_no_estimate_is_trusted_there_is_no_choice():
    judgement = judged(
        a={"model_ff": estimate(5.0, low_support=1.0, disagreement=9.0)},
        b={"fqe": estimate(7.0, updates_too_few=1.0)},
    )
    assert judgement.chosen is None
    assert judgement.shortlist == ()
    text = selection.advice(judgement)
    assert text.startswith("No choice: no estimate of any of these policies is both supported")
    assert "Not judged: a, b." in text
    assert "the models disagree by 9" in text
    assert "some fits have not settled" in text
    assert "What would help: episodes of these policies" in text


def test_the_behavior_is_kept_where_no_gain_is_likely():
    judgement = judged(a={"fqe": estimate(0.5)}, b={"fqe": estimate(-3.0)})
    assert judgement.chosen == judging.BEHAVIOR
    assert "Keep the behavior: not even the first choice, a, is likely better" in selection.advice(
        judgement
    )


def test_the_lower_bound_decides_between_a_safe_and_an_uncertain_policy():
    judgement = judged(safe={"fqe": estimate(2.0, stderr=0.1)}, bold={"fqe": estimate(2.5, 3.0)})
    assert judgement.chosen == "safe"
    assert judgement.shortlist == ("safe", "bold")
    text = selection.advice(judgement)
    assert "To have the best of 2 with 80%, deploy 2: safe, bold." in text
    assert "bold (4" in text  # safe is better with a probability of 43 %
    assert "Only values vote" in text


def test_negated_rewards_turn_the_order_round():
    values = {"a": 3.0, "b": -1.0, "c": 7.0}

    def order(sign):
        logged = Logged(estimate(sign), estimate(sign), undiscounted=sign)
        by_policy = {name: {"fqe": estimate(sign * value)} for name, value in values.items()}
        return [policy.name for policy in judging.judgement(by_policy, logged).policies]

    assert order(1.0) == order(-1.0)[::-1] == ["c", "a", "b"]


def test_a_judgement_as_json_holds_what_the_page_says():
    judgement = judged(a={"fqe": estimate(3.0)}, b={"fqe": estimate(1.0, low_support=1.0)})
    described = json.loads(json.dumps(wording.to_json(judgement)))
    assert described["chosen"] == "a"
    assert described["policies"][0]["votes"] == {"values": "fqe"}
    assert described["policies"][1]["standing"] is None
    assert described["behavior"]["undiscounted"] == 2.0


def test_estimators_that_give_the_same_reason_are_named_together():
    low = {name: estimate(1.0, effective_sample_size=1.0) for name in ("weighted", "magic")}
    fine = {"fqe": estimate(1.0, visited_share=0.9)}
    verdict = judging.verdict({**low, **fine}, support.Limits())
    (reason,) = verdict.reasons
    assert reason.startswith("weighted, magic: the importance weights leave 1 effective episodes")


# --- policies ---


def test_policies_of_one_kind_are_evaluated_together(problem):
    other = problem.policy._replace(mode=lambda params, observation: jnp.zeros(1))
    mixed = candidates(problem, "ab") | {"other": (other, problem.target_params[0])}
    first, second = candidate_policies.grouped(mixed, problem.spec)
    assert first.names == ("a", "b")
    assert second.names == ("other",)
    gains = [problem.target_params[row]["gain"] for row in (0, 1)]
    np.testing.assert_allclose(first.policies.params["gain"], np.stack(gains))


def test_actions_are_those_that_a_simulator_would_take(problem):
    wild = policy_functions.as_policy(lambda params, observation, key: 3.0 * jnp.ones(1))
    acting = candidate_policies.acting(wild, problem.spec)
    np.testing.assert_array_equal(acting.sample((), jnp.zeros(2), KEY), [1.0])


def test_an_actor_is_judged_in_models_and_refused_in_words_elsewhere(problem, data):
    actor = policy_functions.as_actor(problem.policy)
    actors = {"planner": (actor, problem.target_params[0])}
    plain = {"planner": (problem.policy, problem.target_params[0])}
    settings = {"key": KEY, "seeds": 1, "settings": TINY}
    (by_actor,) = selection.judge(actors, data, estimators=("model_ff",), **settings).policies
    (by_policy,) = selection.judge(plain, data, estimators=("model_ff",), **settings).policies
    np.testing.assert_allclose(
        by_actor.estimates["model_ff"].value, by_policy.estimates["model_ff"].value, rtol=1e-5
    )
    for group in ("fqe", "importance", "vpm"):
        message = rf"estimator {group} \(for planner\) needs a policy whose action depends on"
        with pytest.raises(UsageError, match=message):
            selection.judge(actors, data, estimators=("model_ff", group), **settings)


def test_estimators_of_values_and_ratios_refuse_an_actor_themselves(problem, data):
    actor = policy_functions.as_actor(problem.policy)
    policies = Policies(actor, jax.tree.map(lambda leaf: leaf[None], problem.behavior_params))
    with pytest.raises(UsageError, match="needs a policy whose action depends on one observation"):
        estimators.estimate("vpm", None, data, policies, TINY, seed=0)


def test_what_cannot_be_judged_is_refused_before_any_fit(problem, data, monkeypatch):
    def fail(*args):
        raise AssertionError("something was fitted")

    groups = {
        name: group._replace(learn=fail, estimate=fail) for name, group in estimators.GROUPS.items()
    }
    monkeypatch.setattr(estimators, "GROUPS", groups)
    policies = candidates(problem)
    bare = {"a": (problem.policy._replace(log_prob=None), problem.target_params[0])}
    wide = {"a": (policy_functions.as_policy(lambda *_: jnp.zeros(2)), ())}
    for arguments, message in (
        ({"candidates": {}}, "no policy to judge"),
        ({"estimators": ()}, "no estimator is named"),
        ({"estimators": ("fqee",)}, "unknown estimator 'fqee'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"candidates": wide}, r"action has shape \(2,\)"),
        (
            {"candidates": bare, "estimators": ("fqe", "importance")},
            "a has no log_prob, which importance needs: .* fqe$",
        ),
    ):
        settings = {"candidates": policies, "estimators": ("fqe",)} | arguments
        with pytest.raises(UsageError, match=message):
            judging.judge(data=data, key=KEY, **settings)
