"""Three steps that overlap: the order of things, how much is begun ahead, and what happens when a
step breaks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from daemon.analyse.flow import Flow, Steps


class Number:
    """An item."""

    def __init__(self, value: int) -> None:
        self.value = value


class Bench:
    """Steps that note what they did, and an owner that can be held up."""

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


def test_a_batch_is_what_waits_and_nothing_waits_for_a_batch() -> None:
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
    # The first alone at once; the others while it was answered.
    assert bench.batches == [
        [0],
        [1, 2, 3],
    ]
    assert bench.ended == [0, 1, 2, 3]


def test_no_more_is_claimed_than_a_batch_ahead() -> None:
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


def test_an_item_that_a_step_does_not_pass_on_has_ended() -> None:
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
def test_a_step_that_raises_ends_it_all_and_what_is_left_is_known(step: str) -> None:
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
