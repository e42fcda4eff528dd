import functools

import pytest
from logged_examples import exact, logged, ratios_of

from offline_mbrl.problems import known
from offline_mbrl.training import programs


@pytest.fixture
def optimized(monkeypatch):
    """Fits of a thousand updates and more take longer than compiling them well."""
    level = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(programs, "jit", functools.partial(programs.jit, compiler_options=level))


@pytest.fixture(scope="module", params=[False, True], ids=["continuing", "terminal"])
def setting(request):
    """Two hundred episodes: problem, target, trajectories, log ratios, exact values."""
    problem, batch = logged(known.tabular, num_episodes=200, terminal=request.param)
    params = problem.target_params[3]
    return (
        problem,
        params,
        batch,
        ratios_of(problem.policy)(params, batch),
        *exact(problem, params, batch),
    )
