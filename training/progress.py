"""Progress bars and spinners on a terminal; nothing if the output is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Called with (so far, in all)
Done = Callable[[int, int], None]


@contextmanager
def bar(text: str, console: Console | None = None) -> Iterator[Done]:
    """A bar that advances with each call of the yielded function, and vanishes at the end."""
    console = console or Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )

    with Progress(
        *columns, console=console, transient=True, disable=not _is_watched(console)
    ) as progress:
        task = progress.add_task(text, total=None)
        yield lambda so_far, in_all: progress.update(task, completed=so_far, total=in_all)


@contextmanager
def spinner(text: str, console: Console | None = None) -> Iterator[None]:
    """A spinner for a step whose length is not known; it vanishes at the end."""
    console = console or Console()
    if not _is_watched(console):
        yield
        return

    with console.status(text):
        yield


def _is_watched(console: Console) -> bool:
    return console.is_terminal and not console.quiet
