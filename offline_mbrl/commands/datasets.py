"""Datasets for commands: what is absent is generated while a person watches."""

import functools
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import official
from offline_mbrl.runs import display


def load(name: str, console: Console, **settings: Any) -> catalog.Loaded:
    """`catalog.load` with a progress bar for what has to be generated; states become one vector."""
    return catalog.flattened(catalog.load(name, collect=collector(console), **settings))


def collector(console: Console) -> catalog.Collect:
    """What generates the episodes of `local/` datasets."""

    def collect(environment: str, **settings: Any) -> Iterator[dict[str, Any]]:
        # Simulators are loaded only where they are needed.
        from offline_mbrl.collect import atari, bsuite, control
        from offline_mbrl.collect.maze2d import episodes as maze2d
        from offline_mbrl.collect.mujoco import episodes as mujoco
        from offline_mbrl.collect.ogbench import episodes as ogbench

        family, _, name = environment.rpartition("/")
        counted = "steps" if "num_steps" in settings else "episodes"
        say = functools.partial(console.print, highlight=False)
        collectors = {
            "": bsuite.collect,
            "atari": atari.collect,
            "control": functools.partial(control.collect, report=say),
            "mujoco": mujoco.collect,
            "ogbench": ogbench.collect,
        }
        collect_named = collectors[family]
        if environment in official.LOCAL_RANDOM:
            collect_named = bsuite.collect_random
            name = environment.removesuffix(official.RANDOM)
        if environment in official.LOCAL_MAZE2D:
            collect_named = maze2d.collect
        with display.bar(console, f"Generating {environment}", settings[f"num_{counted}"]) as show:
            yield from collect_named(
                name, progress=lambda done, *_: show(done, counted), **settings
            )

    return collect
