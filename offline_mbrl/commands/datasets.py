"""Datasets for commands: what is absent is generated while a person watches."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from offline_mbrl.commands import display
from offline_mbrl.data import catalog


def load(name: str, console: Console, **settings: Any) -> catalog.Loaded:
    """`catalog.load` with a progress bar for what has to be generated; states become one vector."""
    return catalog.flattened(catalog.load(name, collect=collector(console), **settings))


def collector(console: Console) -> catalog.Collect:
    """What generates the episodes of `local/` datasets."""

    def collect(environment: str, **settings: Any) -> Iterator[dict[str, Any]]:
        from offline_mbrl.collect import atari, bsuite  # simulators are loaded only where something is generated

        game = environment.removeprefix("atari/")
        run, counted = (bsuite.collect, "episodes") if game == environment else (atari.collect, "steps")
        with display.bar(console, f"Generating {environment}", settings[f"num_{counted}"]) as show:
            yield from run(game, progress=lambda done, *_: show(done, counted), **settings)

    return collect
