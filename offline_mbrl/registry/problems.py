"""The small problems that cases name, imported when a test asks for one."""

from typing import Any


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


def linear_quadratic() -> Any:
    """A damped position and its velocity, pushed by a weak, noisy controller, without end."""
    from offline_mbrl.problems import linear_quadratic

    return linear_quadratic.linear_quadratic(0)
