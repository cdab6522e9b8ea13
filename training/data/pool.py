"""One function over many items, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# items: starting a process costs as much as reading some dozens of images
WORTH_PROCESSES = 200
# items of one task
_AT_ONCE = 8


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    done: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """`function` of each item, in order; it, items and results must pickle.

    This process works too, because it has loaded everything, while a new process has yet to start.

    Args:
        done: called with (items so far, items in all).
    """
    workers = len(os.sched_getaffinity(0)) - 1
    if len(items) < WORTH_PROCESSES or not workers:
        return _here(function, items, done)

    # Not forked: torch's threads and their locks would not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _die_with_parent) as pool:
        try:
            return _shared(pool, function, items, done)
        except BaseException:
            # Wait here: otherwise a pool that is garbage collected first would finish all tasks.
            pool.shutdown(cancel_futures=True)
            raise


def _here(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    done: Callable[[int, int], None] | None,
) -> list[Result]:
    results = []
    for item in items:
        results.append(function(item))
        if done is not None:
            done(len(results), len(items))
    return results


def _shared(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    done: Callable[[int, int], None] | None,
) -> list[Result]:
    """The pool takes tasks from the first on, this process from the last on, until they meet."""
    tasks = [items[first : first + _AT_ONCE] for first in range(0, len(items), _AT_ONCE)]
    futures = [pool.submit(_here, function, task, None) for task in tasks]
    ours: list[list[Result]] = []

    def tell() -> None:
        theirs = [future for future in futures if future.done() and not future.cancelled()]
        # Re-raises an error of a pool process.
        so_far = sum(len(part) for part in (*(future.result() for future in theirs), *ours))
        if done is not None:
            done(so_far, len(items))

    for task, future in zip(reversed(tasks), reversed(futures), strict=True):
        # Fails if the pool has already taken the task.
        if not future.cancel():
            break
        ours.append(_here(function, task, None))
        tell()

    theirs = futures[: len(tasks) - len(ours)]
    for _ in as_completed(theirs):
        tell()
    parts = (*(future.result() for future in theirs), *reversed(ours))
    return [result for part in parts for result in part]


def _die_with_parent() -> None:
    """Otherwise a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
