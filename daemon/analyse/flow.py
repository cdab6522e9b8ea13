"""Work in three overlapping steps: helper threads begin and end each item, one thread answers.

The device thread answers. Its next batch is whatever items are ready: nothing ever waits for a
batch to fill. worker.py supplies the steps.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Steps(Generic[_Item]):
    """The functions of the steps. A step that raises breaks the flow."""

    # On a helper thread. Returns whether the item goes on; otherwise it has ended.
    begin: Callable[[_Item], bool]
    # On the device thread. Returns the items that go on; the others have ended.
    answer: Callable[[Sequence[_Item]], Sequence[_Item]]
    # On a helper thread.
    end: Callable[[_Item], None]
    # On the device thread, after each batch and while nothing waits. Returns whether it has more
    # to do.
    idle: Callable[[], bool]


class Flow(Generic[_Item]):
    """The items in work. Helpers end an item before they begin another, so that none pile up."""

    def __init__(self, steps: Steps[_Item], batch: int, helpers: int) -> None:
        """`batch`: the most items that are answered at once. `helpers`: how many helper threads."""
        self._steps = steps
        self._batch = batch
        self._changed = threading.Condition()
        self._new: deque[_Item] = deque()
        self._begun: deque[_Item] = deque()
        self._answered: deque[_Item] = deque()
        self._unanswered = 0

        # The idle step has more to do.
        self._idle_pending = True
        self._all: list[_Item] = []
        self._error: BaseException | None = None
        self._over = False

        self._threads = [self._thread("device", self._run_device)]
        self._threads += [
            self._thread(f"helper-{number}", self._run_helper) for number in range(helpers)
        ]

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._run, args=(work,), name=name, daemon=True)

    def __enter__(self) -> Flow[_Item]:
        # Here and not in each thread: catch_warnings() is process-wide, and threads would undo each
        # other's. pydicom's warnings quote header values.
        self._silence = warnings.catch_warnings()
        self._silence.__enter__()
        warnings.simplefilter("ignore")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads. Items that have not ended stay in `in_hand`."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._silence.__exit__(None, None, None)

    @property
    def in_hand(self) -> list[_Item]:
        """The items that were put in and have not ended."""
        with self._changed:
            return list(self._all)

    @property
    def broken(self) -> bool:
        """Whether a step has raised: no item moves any more."""
        return self._error is not None

    def put(self, items: Sequence[_Item]) -> None:
        with self._changed:
            self._new.extend(items)
            self._all.extend(items)
            self._unanswered += len(items)
            self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> int:
        """How many more items may be put in: one batch ahead of the device, two batches in all.

        Raises the error of a step that broke.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._room() > 0, timeout_s)
            self._raise()
            return max(0, self._room())

    def drain(self) -> None:
        """Return when every item has ended. Raises the error of a step that broke."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._all)
            self._raise()

    def wake(self) -> None:
        """Let the idle step look again."""
        with self._changed:
            self._idle_pending = True
            self._changed.notify_all()

    def _room(self) -> int:
        return min(self._batch - self._unanswered, 2 * self._batch - len(self._all))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._over = True
                self._changed.notify_all()

    def _run_device(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._begun or self._idle_pending)
                if self._over:
                    return
                self._idle_pending = False
                number = min(len(self._begun), self._batch)
                batch = [self._begun.popleft() for _ in range(number)]

            if batch:
                going_on = self._steps.answer(batch)
                with self._changed:
                    self._answered.extend(going_on)
                    self._unanswered -= len(batch)
                    self._leave([item for item in batch if item not in going_on])
                del going_on

            # Free the pictures now, not when the next batch comes.
            del batch
            if self._steps.idle():
                self.wake()

    def _run_helper(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._answered or self._new)
                if self._over:
                    return
                is_answered = bool(self._answered)
                item = self._answered.popleft() if is_answered else self._new.popleft()

            if is_answered:
                self._end(item)
            else:
                self._begin(item)
            # Free its picture now, not when the next item comes.
            del item

    def _begin(self, item: _Item) -> None:
        goes_on = self._steps.begin(item)
        with self._changed:
            if goes_on:
                self._begun.append(item)
                self._changed.notify_all()
            else:
                self._unanswered -= 1
                self._leave([item])

    def _end(self, item: _Item) -> None:
        self._steps.end(item)
        with self._changed:
            self._leave([item])

    def _leave(self, items: Sequence[_Item]) -> None:
        for item in items:
            self._all.remove(item)
        self._changed.notify_all()
