"""Behaviour Suite: the three environments of the published offline data.

They have the settings of their first bsuite id.
"""

import itertools

import dm_env

# name -> (class, its longest episode): cartpole ends after more than 10 s in steps of 0.01 s.
ENVIRONMENTS = {
    "catch": ("Catch", 9),
    "cartpole": ("Cartpole", 1001),
    "mountain_car": ("MountainCar", 1000),
}
# name -> how many starts there are, all equally likely, where nothing is random after them.
STARTS = {"catch": 5}  # the columns in which the ball may appear


def names() -> list[str]:
    """The known environments."""
    return list(ENVIRONMENTS)


def load(name: str, seed: int) -> tuple[dm_env.Environment, int]:
    """A bsuite environment and its longest episode.

    Time is part of every observation, so all ends are terminals.

    Args:
      name: one of `names()`.
      seed: of the environment's randomness.
    """
    from bsuite.environments import cartpole, catch, mountain_car

    module = {"catch": catch, "cartpole": cartpole, "mountain_car": mountain_car}[name]
    class_name, horizon = ENVIRONMENTS[name]
    return getattr(module, class_name)(seed=seed), horizon


def starts(name: str) -> tuple[int, ...]:
    """Seeds of environments whose first episodes begin at each start once; see `STARTS`.

    Args:
      name: one of `names()`.

    Returns:
      The seeds, none where the starts are not listed.
    """
    if name not in STARTS:
        return ()
    seed_of: dict[bytes, int] = {}
    seeds = itertools.count()
    while len(seed_of) < STARTS[name]:
        seed = next(seeds)
        seed_of.setdefault(load(name, seed)[0].reset().observation.tobytes(), seed)
    return tuple(seed_of.values())
