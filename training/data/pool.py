"""One function over many images, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from training.data.cases import Case

Result = TypeVar("Result")
# images: starting a process costs as much as reading some dozens
WORTH_PROCESSES = 200
# of one task: smaller ones wake this process so often that two cores lose a third of their time
_AT_ONCE = 32


def each(
    function: Callable[[Case], Result],
    cases: Sequence[Case],
    done: Callable[[int, int], None] | None = None,
) -> Iterator[Result]:
    """`function` of each case, in order; it and the cases must pickle.

    `done(so far, in all)` is called after each.
    """
    cores = len(os.sched_getaffinity(0))
    if len(cases) < WORTH_PROCESSES or cores == 1:
        yield from _told(map(function, cases), len(cases), done)
        return

    # Not forked: torch's threads and their locks would not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cores, len(cases) // _AT_ONCE), context, _die_with_parent) as pool:
        try:
            yield from _told(pool.map(function, cases, chunksize=_AT_ONCE), len(cases), done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _told(
    results: Iterator[Result], count: int, done: Callable[[int, int], None] | None
) -> Iterator[Result]:
    for number, result in enumerate(results, 1):
        yield result
        if done is not None:
            done(number, count)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
