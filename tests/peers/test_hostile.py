"""A hostile network against a real `pleura receive`: it stays up, its memory returns to what it
was, and honest senders get through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from daemon import service
from tests.peers.hostile import (
    Account,
    Crowd,
    Honest,
    Receive,
    bad_log_lines,
    connects,
    fuzz,
    sample,
)
from tests.peers.mutations import associate_rq, echo_rq, p_data, pdv, store_command
from tools.peers.waiting import wait_until

pytestmark = pytest.mark.xdist_group("hostile")
SEED = 20260101
# A tenth of the default limits, so that no test waits half a minute.
QUICKER = {"pdu_s": 3.0, "request_s": 3.0, "idle_s": 3.0}
MAXIMUM_ASSOCIATIONS = 64
# Measured growth of RSS: at most 1.5 MB, from the second batch of 200 cases on.
RETURNED_MB = 8.0


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, module_port: int) -> Iterator[Honest]:
    """A sender to a node that all tests share; each test leaves the node as it was."""
    folder = tmp_path_factory.mktemp("hostile")
    with Receive(folder, module_port, QUICKER) as node:
        yield Honest(node, Account(), sample(folder).read_bytes(), folder)


@pytest.fixture(scope="module")
def module_port() -> int:
    from tools.peers.ports import unused_port

    return unused_port()


@pytest.fixture
def node(honest: Honest) -> Iterator[Receive]:
    """The shared node. After each test it is at rest again, and holds every object that it
    acknowledged.
    """
    honest.store()
    honest.node.at_rest()
    yield honest.node
    honest.store()
    honest.node.at_rest()
    assert honest.account.violations(honest.node) == []
    assert bad_log_lines(honest.node.log) == []


def test_mutated_conversations(node: Receive, honest: Honest) -> None:
    account = honest.account
    before = account.acknowledged.total()
    held = []
    for first in range(0, 800, 200):
        with honest.meanwhile():
            fuzz(node, SEED, range(first, first + 200), account)
        honest.store()
        held.append(node.at_rest())
        assert account.violations(node) == []

    # With fewer, most conversations would have ended too early to show anything.
    assert account.acknowledged.total() - before > 200
    assert held[-1].rss_kb - held[0].rss_kb < RETURNED_MB * 1024


ASSOCIATED = associate_rq()
COMMAND = p_data(pdv(3, 3, store_command(1, "1.2.3")))
ONE_BYTE = p_data(pdv(3, 0, b"x"))
# The bytes sent at once, those sent after the answer, and those that follow one at a time.
SLOWLY = {
    "before the association": (b"", b"", ASSOCIATED[:1] + b"\0\0\0\xff\xff" + bytes(60_000)),
    "after the association": (ASSOCIATED, b"", b""),
    "inside a PDU": (ASSOCIATED, COMMAND, b"\x04\0\0\x00\xff\xff" + bytes(70_000)),
}


@pytest.mark.parametrize("phase", SLOWLY)
def test_slow_senders_are_ended(node: Receive, honest: Honest, phase: str) -> None:
    """Twice as many slow senders as there are association slots."""
    with Crowd(node, 2 * MAXIMUM_ASSOCIATIONS, SLOWLY[phase]) as crowd:
        wait_until("the node ends a slow sender", lambda: crowd.ended)
        honest.store()


def test_a_connection_without_a_request_takes_no_slot(node: Receive, honest: Honest) -> None:
    """More connections than there are slots send a byte at a time; an honest sender is accepted at
    its first try.
    """
    with Crowd(node, 2 * MAXIMUM_ASSOCIATIONS + 4, (b"", b"", ASSOCIATED)) as crowd:
        wait_until("the node ends a slow connection", lambda: crowd.ended)
        tried = honest.tried
        for _ in range(10):
            honest.store()
        assert honest.tried == tried + 10


def test_a_slow_peer_that_keeps_to_the_standard_is_served(node: Receive, honest: Honest) -> None:
    """Peers that send a data set in PDUs of one byte are not ended, while slots are left for
    others.
    """
    held = Crowd(
        node, MAXIMUM_ASSOCIATIONS // 2, (ASSOCIATED, COMMAND, ONE_BYTE), at_once=len(ONE_BYTE)
    )
    with held:
        wait_until(
            "the slow peers are accepted",
            lambda: node.footprint().threads > MAXIMUM_ASSOCIATIONS // 2,
        )
        for _ in range(5):
            honest.store()


def test_a_peer_that_neither_awaits_nor_reads_answers_is_held_back(
    node: Receive, honest: Honest
) -> None:
    """Back-pressure: requests that the node has not answered stay with the sender, not in the
    node's memory.
    """
    echoes = b"".join(echo_rq(number) for number in range(100))
    before = node.at_rest()
    with Crowd(node, 16, (ASSOCIATED, b"", echoes), at_once=len(echoes), reads=False):
        for _ in range(20):
            honest.store()
    assert node.at_rest().rss_kb - before.rss_kb < RETURNED_MB * 1024


def test_a_flood_of_associations(node: Receive, honest: Honest) -> None:
    """Three times as many valid associations as slots; a rejected peer tries again at once."""
    with Crowd(node, 3 * MAXIMUM_ASSOCIATIONS, (ASSOCIATED, b"", b"")) as crowd:
        wait_until("many are rejected", lambda: crowd.ended > 2 * MAXIMUM_ASSOCIATIONS)
        honest.store()


def test_bare_connects(node: Receive, honest: Honest) -> None:
    with honest.meanwhile():
        connects(node, 2000)


def test_sigterm_amid_hostile_talk(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """The node stops with exit status 0; `Receive` asserts it on exit."""
    for seed in range(3):
        with Receive(tmp_path / str(seed), free_port(), QUICKER) as node:
            talking = threading.Thread(target=until_gone, args=(node, seed))
            talking.start()
            wait_until("the node is receiving", partial(at_work, node))
        talking.join()


def test_the_wait_for_sigterm_has_a_time_limit() -> None:
    """While other threads run, a signal does not always end a wait of the main thread that has no
    time limit.
    """

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            self.set()
            return super().wait(timeout)

    service._wait(Stop())


def at_work(node: Receive) -> bool:
    return len(node.rows()) > 10


def until_gone(node: Receive, seed: int) -> None:
    with pytest.raises(OSError):
        fuzz(node, seed, range(2000), Account())
