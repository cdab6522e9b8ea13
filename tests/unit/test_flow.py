"""The pipeline of three overlapping steps: order, how far ahead it works, and what happens when a
step fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from daemon.analyse.flow import Flow, Steps


class Number:
    """An item of work."""

    def __init__(self, value: int) -> None:
        self.value = value


class Bench:
    """Steps that record their calls, and an answering step that a test can hold back."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.ended: list[int] = []

    def steps(self, **other: Callable[..., object]) -> Steps[Number]:
        usual = {"begin": self.begin, "answer": self.answer, "end": self.end, "idle": lambda: False}
        return Steps(**(usual | other))  # type: ignore[arg-type]

    def begin(self, item: Number) -> bool:
        self.begun.release()
        return item.value >= 0

    def answer(self, items: Sequence[Number]) -> Sequence[Number]:
        self.batches.append([item.value for item in items])
        assert self.go.wait(60)
        return items

    def end(self, item: Number) -> None:
        self.ended.append(item.value)


def numbers(*values: int) -> list[Number]:
    return [Number(value) for value in values]


def test_a_batch_takes_the_waiting_items_and_no_item_waits_for_a_full_batch() -> None:
    bench = Bench()
    with Flow(bench.steps(), 8, 1) as flow:
        flow.put(numbers(0))
        while not bench.batches:
            pass

        flow.put(numbers(1, 2, 3))
        for _ in range(4):
            assert bench.begun.acquire(timeout=60)
        bench.go.set()
        flow.drain()

    # The first item was answered at once; the others gathered meanwhile.
    assert bench.batches == [
        [0],
        [1, 2, 3],
    ]
    assert bench.ended == [0, 1, 2, 3]


def test_at_most_one_batch_is_claimed_ahead() -> None:
    bench = Bench()
    with Flow(bench.steps(), 4, 2) as flow:
        assert flow.wait_for_room(0) == 4
        flow.put(numbers(0, 1, 2))
        assert flow.wait_for_room(0) == 1
        flow.put(numbers(3))
        assert flow.wait_for_room(0) == 0
        bench.go.set()
        flow.drain()
        assert flow.wait_for_room(0) == 4
    assert sorted(bench.ended) == [0, 1, 2, 3]
    assert max(map(len, bench.batches)) <= 4


def test_an_item_dropped_by_a_step_is_done() -> None:
    bench = Bench()
    bench.go.set()
    with Flow(
        bench.steps(answer=lambda items: [item for item in items if item.value != 1]), 4, 1
    ) as flow:
        flow.put(numbers(-1, 0, 1, 2))
        flow.drain()
        assert flow.in_hand == []
        assert flow.wait_for_room(0) == 4
    assert bench.ended == [0, 2]


@pytest.mark.parametrize("step", ["begin", "answer", "end"])
def test_a_failing_step_ends_the_flow_and_leaves_the_items_in_hand(step: str) -> None:
    def breaks(_: object) -> bool:
        raise ArithmeticError(step)

    bench = Bench()
    bench.go.set()
    items = numbers(0, 1)
    with Flow(bench.steps(**{step: breaks}), 4, 1) as flow:
        flow.put(items)
        with pytest.raises(ArithmeticError, match=step):
            flow.drain()
        with pytest.raises(ArithmeticError, match=step):
            flow.wait_for_room(0)
    assert flow.broken
    assert flow.in_hand == items


def test_the_owner_is_idle_only_between_batches() -> None:
    bench = Bench()
    bench.go.set()
    turns = 0

    def idle() -> bool:
        nonlocal turns
        turns += 1
        return turns < 3

    with Flow(bench.steps(idle=idle), 4, 1) as flow:
        while turns < 3:
            pass
        flow.put(numbers(0))
        flow.drain()
    assert bench.ended == [0]
    assert turns == 4
