"""Work in three steps that overlap: some threads begin and end each item, one thread alone does the middle.

The middle owns the device. Its batches are made of what has been begun by then: nothing ever waits for a batch to fill.
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
    """What is done to an item. One that a step does not pass on has ended. A step that raises breaks the flow."""

    begin: Callable[[_Item], bool]  # any thread; whether it goes on
    answer: Callable[[Sequence[_Item]], Sequence[_Item]]  # the owner's thread; which of them go on
    end: Callable[[_Item], None]  # any thread
    idle: Callable[
        [], bool
    ]  # the owner's thread, after a batch and while there is none; whether it has more to do


class Flow(Generic[_Item]):
    """Items on their way. What is nearer its end comes first, so that what is begun does not pile up."""

    def __init__(self, steps: Steps[_Item], batch: int, hands: int) -> None:
        """At most `batch` items are given to the owner at once; `hands` threads begin and end them."""
        self._steps, self._batch = steps, batch
        self._changed = threading.Condition()
        self._new: deque[_Item] = deque()
        self._begun: deque[_Item] = deque()
        self._answered: deque[_Item] = deque()
        self._unanswered = 0
        self._restless = True  # `idle` has more to do
        self._all: list[_Item] = []
        self._error: BaseException | None = None
        self._over = False
        self._threads = [
            threading.Thread(target=self._run, args=(self._own,), name="owner", daemon=True)
        ]
        self._threads += [
            threading.Thread(
                target=self._run, args=(self._lend_a_hand,), name=f"hand-{number}", daemon=True
            )
            for number in range(hands)
        ]

    def __enter__(self) -> Flow[_Item]:
        # catch_warnings() of several threads undo one another, and pydicom's warnings quote header values.
        self._silence = warnings.catch_warnings()
        self._silence.__enter__()
        warnings.simplefilter("ignore")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What no thread has in its hands any more stays in `in_hand`."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._silence.__exit__(None, None, None)

    @property
    def in_hand(self) -> list[_Item]:
        """What was put in and has not ended."""
        with self._changed:
            return list(self._all)

    @property
    def broken(self) -> bool:
        """A step has raised: nothing moves any more."""
        return self._error is not None

    def put(self, items: Sequence[_Item]) -> None:
        with self._changed:
            self._new.extend(items)
            self._all.extend(items)
            self._unanswered += len(items)
            self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> int:
        """How many more items may be put in: a batch ahead of the owner, and no more than two in all.

        Raises what a step has raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._room() > 0, timeout_s)
            self._raise()
            return max(0, self._room())

    def drain(self) -> None:
        """Return when nothing is in hand. Raises what a step has raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._all)
            self._raise()

    def wake(self) -> None:
        """There may be something for `idle` to do again."""
        with self._changed:
            self._restless = True
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

    def _own(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._begun or self._restless)
                if self._over:
                    return
                self._restless = False
                batch = [self._begun.popleft() for _ in range(min(len(self._begun), self._batch))]
            if batch:
                going_on = self._steps.answer(batch)
                with self._changed:
                    self._answered.extend(going_on)
                    self._unanswered -= len(batch)
                    self._leave([item for item in batch if item not in going_on])
                del going_on
            del batch  # pictures must not be kept until the next ones come
            if self._steps.idle():
                self.wake()

    def _lend_a_hand(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._answered or self._new)
                if self._over:
                    return
                beginning = not self._answered
                item = self._new.popleft() if beginning else self._answered.popleft()
            if not beginning:
                self._steps.end(item)
                with self._changed:
                    self._leave([item])
            else:
                goes_on = self._steps.begin(item)
                with self._changed:
                    if goes_on:
                        self._begun.append(item)
                        self._changed.notify_all()
                    else:
                        self._unanswered -= 1
                        self._leave([item])
            del item

    def _leave(self, items: Sequence[_Item]) -> None:
        for item in items:
            self._all.remove(item)
        self._changed.notify_all()
