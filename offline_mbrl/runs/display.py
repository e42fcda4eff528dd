"""What a person watches while a command runs."""

import contextlib
import os
from collections.abc import Callable, Iterator

from rich import progress
from rich.console import Console

WIDTH = 120  # of tables in files and pipes
Show = Callable[[int, str], None]  # (updates done, figures in words)


def console(*, plain: bool = False) -> Console:
    """The console of results: stdout. Text is printed as it is: a path may hold brackets."""
    console = Console(
        highlight=False,
        soft_wrap=True,
        markup=False,
        emoji=False,
        force_terminal=False if plain else None,
    )
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


@contextlib.contextmanager
def bar(console: Console, label: str, total: int, done: int = 0) -> Iterator[Show]:
    """A progress bar on a terminal; elsewhere about ten lines from start to end."""
    if not console.is_terminal:
        yield _lines(console, label, total, done)
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[figures]}"),
    )
    with progress.Progress(*columns, console=console) as shown:
        task = shown.add_task(label, total=total, completed=done, figures="")
        yield lambda step, figures: shown.update(task, completed=step, figures=figures)


def _lines(console: Console, label: str, total: int, done: int) -> Show:
    shown = [done]

    def show(step: int, figures: str) -> None:
        if step * 10 // total > shown[0] * 10 // total:
            console.print(f"{label} {step}/{total} {figures}".rstrip())
            shown[0] = step

    return show
