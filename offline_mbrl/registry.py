"""The algorithms by name, read by the contract's tests, the command line and the benchmarks.

An algorithm is one function below: it imports what it needs when it is first looked up, so that
loading an exported policy loads no other algorithm. `cases` are the problems that the contract's
tests solve with it.

Algorithms from outside have the same standing: a file, `path/to/file.py:make`, or an installed
package's entry point in the group `offline_mbrl.algorithms`.
"""

import difflib
from collections.abc import Callable
from typing import Any

from offline_mbrl import outside
from offline_mbrl.outside import absolute, label
from offline_mbrl.types import Algorithm, Case, UsageError

__all__ = ["ENTRIES", "absolute", "entry", "label", "lookup"]

ENTRIES: dict[str, Callable[[], Algorithm]] = {}
_LOADED: dict[str, Algorithm] = {}


def entry(make: Callable[[], Algorithm]) -> Callable[[], Algorithm]:
    """Registers an algorithm by the name of the function that returns it.

    The function's docstring is the command's summary.
    """
    ENTRIES[make.__name__] = make
    return make


# --- problems of the cases ---


def chain() -> Any:
    """A corridor whose data mostly move right: cloning them is worth it."""
    from offline_mbrl.problems import toy

    return toy.chain(0, right=0.8)


def bandit() -> Any:
    """Continuous actions with a best one."""
    from offline_mbrl.problems import toy

    return toy.bandit(0)


def bandit_of_good_actions() -> Any:
    """The same problem with the best of the data alone: cloning them is worth it."""
    problem = bandit()
    starts = problem.dataset.starts
    good = starts[problem.dataset.reward[starts] > -0.1]
    return problem._replace(dataset=problem.dataset._replace(starts=good))


def _latent_case(num_updates: int, **settings: Any) -> Case:
    """A case of the latent family.

    Its discount factor is the chain's own: at the default 0.988 actions differ by a hundredth.
    """
    from offline_mbrl.networks import optimizers

    fast = optimizers.OptimizerConfig(learning_rate=5e-3)
    return Case(
        problem=chain,
        config={"batch_size": 16, **settings},
        score=0.99,
        learning={"batch_size": 32, "gamma": 0.9, "optimizer": fast},
        num_updates=num_updates,
    )


def _search_case(operator: str) -> Case:
    """Four simulations. Tree searches waver between 500 and 1,000 updates."""
    from offline_mbrl.algorithms import operators

    search = operators.SearchConfig(operator=operator, num_simulations=4)
    return _latent_case(num_updates=2_000, search=search)


# --- algorithms ---


@entry
def bc() -> Algorithm:
    """Behavior cloning: maximum likelihood of the data's actions, discrete or continuous."""
    from offline_mbrl.learners import bc

    discrete = Case(
        problem=chain,
        config={"batch_size": 16},
        score=0.99,
        learning={"batch_size": 32},
        num_updates=4_000,
    )
    density = bc.ContinuousConfig(layers=(16,), learning_rate=1e-3)
    continuous = Case(
        problem=bandit_of_good_actions,
        config={"batch_size": 16, "continuous": density},
        score=0.95,
        learning={"batch_size": 32},
        num_updates=4_000,
    )
    return Algorithm(config=bc.Config, make=bc.make, cases=(discrete, continuous))


@entry
def gumbel() -> Algorithm:
    """Gumbel MuZero: sequential halving at the root, completed action values."""
    from offline_mbrl.algorithms import muzero_unplugged

    return Algorithm(
        config=muzero_unplugged.GumbelConfig,
        make=muzero_unplugged.make,
        cases=(_search_case("gumbel"),),
    )


@entry
def latent_crr() -> Algorithm:
    """CRR on the latent model: the data's actions cloned by their advantage."""
    from offline_mbrl.algorithms import latent_crr

    return Algorithm(
        config=latent_crr.Config,
        make=latent_crr.make,
        presets=latent_crr.PRESETS,
        cases=(_latent_case(num_updates=1_000),),
    )


@entry
def muzero_unplugged() -> Algorithm:
    """MuZero Unplugged: the policy regresses to the visits of a tree search."""
    from offline_mbrl.algorithms import muzero_unplugged

    return Algorithm(
        config=muzero_unplugged.Config,
        make=muzero_unplugged.make,
        presets=muzero_unplugged.PRESETS,
        cases=(_search_case("muzero"),),
    )


@entry
def mzu_q() -> Algorithm:
    """MZU-Q: MuZero Unplugged with the exponential of searched action values."""
    from offline_mbrl.algorithms import muzero_unplugged

    return Algorithm(
        config=muzero_unplugged.QConfig,
        make=muzero_unplugged.make,
        cases=(_search_case("muzero_q"),),
    )


@entry
def rosmo() -> Algorithm:
    """ROSMO: the policy regresses to a one-step lookahead, held near the data."""
    from offline_mbrl.algorithms import rosmo

    return Algorithm(
        config=rosmo.Config,
        make=rosmo.make,
        presets=rosmo.PRESETS,
        cases=(_latent_case(num_updates=1_000),),
    )


@entry
def sac() -> Algorithm:
    """Soft actor-critic with N critics, for continuous actions."""
    from offline_mbrl.learners import sac

    case = Case(
        problem=bandit,
        config={
            "batch_size": 16,
            "actor_layers": (16,),
            "critic_layers": (16,),
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "temperature_learning_rate": 1e-3,
        },
        score=0.95,
        learning={"batch_size": 32},
        num_updates=4_000,
    )
    return Algorithm(config=sac.Config, make=sac.make, cases=(case,))


@entry
def skeleton() -> Algorithm:
    """Skeleton, the file to copy: a policy climbs a reward model, held near the data."""
    from offline_mbrl.algorithms import skeleton

    case = Case(
        problem=bandit,
        config={"batch_size": 16, "hidden_layers": (16,)},
        score=0.95,
        learning={"batch_size": 32, "hidden_layers": (64, 64)},
        num_updates=4_000,
    )
    return Algorithm(
        config=skeleton.Config, make=skeleton.make, pretrain=skeleton.pretrain, cases=(case,)
    )


# --- looking up ---


def lookup(name: str) -> Algorithm:
    """An algorithm by name.

    Args:
      name: of the table above; of an entry point in the group `offline_mbrl.algorithms`; or
        `path/to/file.py:NAME`, NAME being `make` when absent.

    Raises:
      UsageError: unknown, with the closest known names; or something that is not an algorithm.
    """
    if name in ENTRIES:
        if name not in _LOADED:
            _LOADED[name] = ENTRIES[name]()
        return _LOADED[name]
    if outside.is_file(name):
        return outside.of_file(name)
    points = outside.entry_points()
    if name in points:
        return outside.of_entry_point(points[name])
    names = [*ENTRIES, *points]
    close = difflib.get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    raise UsageError(f"unknown algorithm {name!r}: {hint}")


def __getattr__(name: str) -> Any:
    """`ALGORITHMS`: every algorithm of the table by name, loaded now."""
    if name != "ALGORITHMS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for key in ENTRIES:
        lookup(key)
    return _LOADED
