"""A hostile network against a real `pleura receive`: it stays up, memory returns, honest senders get through."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.peers import hostile
from tests.peers.harness import wait_until
from tests.peers.hostile import (
    Account,
    Crowd,
    Honest,
    Receive,
    associate_rq,
    bad_log_lines,
    connects,
    fuzz,
    p_data,
    pdv,
    store_command,
)

pytestmark = pytest.mark.xdist_group("hostile")
SEED = 20260101
# Nobody waits half a minute here: the same rules at a tenth of the time.
QUICKER = {"daemon.listener:_PDU_S": 3.0, "daemon.listener:_SILENCE_S": 3.0, "daemon.scp:_IDLE_S": 6.0}
MAXIMUM_ASSOCIATIONS = 64
RETURNED_MB = 8.0  # measured: within 1.5 from the second batch of 200 cases on


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, module_port: int) -> Iterator[Honest]:
    """Who sends to a node that all tests share: each leaves it as it was."""
    folder = tmp_path_factory.mktemp("hostile")
    with Receive(folder, module_port, QUICKER) as node:
        yield Honest(node, Account(), hostile.sample(folder).read_bytes(), folder)


@pytest.fixture(scope="module")
def module_port() -> int:
    from tests.conftest import unused_port

    return unused_port()


@pytest.fixture
def node(honest: Honest) -> Iterator[Receive]:
    """The node; after each test, everything is as it was before, and what was acknowledged is there."""
    honest.store()
    honest.node.at_rest()
    yield honest.node
    honest.store()
    honest.node.at_rest()
    assert honest.account.violations(honest.node) == []
    assert bad_log_lines(honest.node.log) == []


def test_mutated_conversations(node: Receive, honest: Honest) -> None:
    account = honest.account
    before, held = account.acknowledged.total(), []
    for first in range(0, 800, 200):
        with honest.meanwhile():
            fuzz(node, SEED, range(first, first + 200), account)
        honest.store()
        held.append(node.at_rest())
        assert account.violations(node) == []
    assert account.acknowledged.total() - before > 200  # else all of them ended too early to show anything
    assert held[-1].rss_kb - held[0].rss_kb < RETURNED_MB * 1024


ASSOCIATED = associate_rq()
COMMAND = p_data(pdv(3, 3, store_command(1, "1.2.3")))
SLOWLY = {  # what is said, what once that is answered, and what then drips
    "before the association": (b"", b"", ASSOCIATED[:1] + b"\0\0\0\xff\xff" + bytes(60_000)),
    "after the association": (ASSOCIATED, b"", b""),
    "inside a PDU": (ASSOCIATED, COMMAND, b"\x04\0\0\x00\xff\xff" + bytes(70_000)),
    "between PDUs of a message": (ASSOCIATED, COMMAND, p_data(pdv(3, 0, b"x"))),
}


@pytest.mark.parametrize("phase", SLOWLY)
def test_slow_senders(node: Receive, honest: Honest, phase: str) -> None:
    with Crowd(node, 2 * MAXIMUM_ASSOCIATIONS, SLOWLY[phase], pause_s=0.2) as crowd:
        wait_until("the node ends one of them", lambda: crowd.ended)
        honest.store()


def test_who_never_reads_an_answer(node: Receive, honest: Honest) -> None:
    echoes = b"".join(hostile.echo_rq(number) for number in range(100))
    with Crowd(node, 30, (ASSOCIATED, b"", echoes), pause_s=0.05, reads=False) as crowd:
        wait_until("the node ends one of them", lambda: crowd.ended)
        honest.store()


def test_a_flood_of_associations(node: Receive, honest: Honest) -> None:
    """Many more than the maximum, each as valid as can be, and all of them stay as long as they may."""
    with Crowd(node, 4 * MAXIMUM_ASSOCIATIONS, (ASSOCIATED, b"", hostile.echo_rq()), pause_s=0.5) as crowd:
        wait_until("some are not let in", lambda: crowd.ended > MAXIMUM_ASSOCIATIONS)
        honest.store()


def test_bare_connects(node: Receive, honest: Honest) -> None:
    with honest.meanwhile():
        connects(node, 2000)


def test_sigterm_amid_hostile_talk(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """The status is asserted where the node ends."""
    for seed in range(3):
        with Receive(tmp_path / str(seed), free_port(), QUICKER) as node:
            talking = threading.Thread(target=until_gone, args=(node, seed))
            talking.start()
            wait_until("it is at work", partial(at_work, node))
        talking.join()


def at_work(node: Receive) -> bool:
    return len(node.rows()) > 10


def until_gone(node: Receive, seed: int) -> None:
    with pytest.raises(OSError):
        fuzz(node, seed, range(2000), Account())
