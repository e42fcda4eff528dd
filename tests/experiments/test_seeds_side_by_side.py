"""The comparison of seeds side by side with seeds alone."""

import numpy as np

from experiments import seeds_side_by_side as script


def test_seeds_of_a_small_algorithm_agree(capsys):
    options = script.Options(algorithms="bc", seeds=2, updates=3)
    assert script.main(options) == 0
    assert "bc" in capsys.readouterr().out


def test_a_difference_beyond_the_tolerance_is_named(monkeypatch, capsys):
    def trained(algorithm, case, seeds, updates):
        return [np.arange(float(len(seeds)))[:, None]]  # alone every seed has 0

    monkeypatch.setattr(script, "trained", trained)
    options = script.Options(algorithms="bc", seeds=2, tolerance=0.5)
    assert script.main(options) == 1
    assert "beyond 0.5: bc" in " ".join(capsys.readouterr().out.split())
