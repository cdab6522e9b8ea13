"""Association slots: who gets a slot, quotas, and which association is evicted when every slot is
taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest.mock import Mock

import pytest

from daemon.config import Config, DicomDestination, Peer
from daemon.dicom.acceptor import Association, Limits
from daemon.receive.access import AccessList, Caller
from daemon.receive.roster import Roster
from daemon.receive.session import Session

PLACES = 8


class Running:
    """Stands in for an association; it runs until it is aborted or released."""

    def __init__(self, roster: Roster, session: Session) -> None:
        self.session: Session | None = None
        self.cut_why = ""
        self.over = threading.Event()
        self._roster = roster
        self._wanted = session

    def ask(self) -> str:
        """Enter and ask for a slot, as the acceptor does. Returns why no slot is free, or ""."""
        assert self._roster.enter(cast(Association, self), self._run)
        full = self._roster.take_slot(self._wanted)
        if full:
            self.over.set()
        else:
            self.session = self._wanted
        return full

    def _run(self, _: Association) -> None:
        self.over.wait(30.0)
        self._roster.leave(cast(Association, self))

    def cut(self, why: str) -> None:
        self.cut_why = why
        self.over.set()


@pytest.fixture
def ask() -> Iterator[Callable[..., tuple[Running, str]]]:
    """ask("XRAY1", quota=...) -> (an association that asks for a slot, why it gets none or "")."""
    roster = Roster(Limits(associations=PLACES))
    asked: list[Running] = []

    def one(ae_title: str, **caller: Any) -> tuple[Running, str]:
        who = Caller(ae_title, **({"entry": "10.0.4.11", "quota": PLACES // 2} | caller))
        running = Running(roster, Session(who, "127.0.0.1", cast(Any, None), cast(Any, None)))
        asked.append(running)
        return running, running.ask()

    yield one
    for each in asked:
        each.over.set()
    while len(roster):
        threading.Event().wait(0.001)


def test_an_association_without_a_thread_takes_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roster = Roster(Limits(associations=PLACES))

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def enter() -> bool:
        return roster.enter(Mock(address="192.0.2.1", session=None), roster.leave)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not any(enter() for _ in range(3 * PLACES))
    assert enter()


def test_a_peer_gets_no_more_than_its_quota(ask: Callable[..., tuple[Running, str]]) -> None:
    mine = [ask("XRAY1", quota=2) for _ in range(2)]
    assert [full for _, full in mine] == ["", ""]
    assert ask("XRAY1", quota=2)[1] == (
        "XRAY1 has 2 associations open, its quota (peers[].associations)"
    )
    assert not ask("XRAY2", quota=2)[1]
    # The same AE title at another address is another entry of `peers`.
    assert not ask("XRAY1", quota=2, entry="10.0.4.12")[1]


def test_a_released_slot_can_be_taken_again(ask: Callable[..., tuple[Running, str]]) -> None:
    first, _ = ask("XRAY1", quota=1)
    assert ask("XRAY1", quota=1)[1]
    first.over.set()
    # leave() runs in the association's own thread.
    while ask("XRAY1", quota=1)[1]:
        pass


def test_several_peers_together_cannot_shut_out_another(
    ask: Callable[..., tuple[Running, str]],
) -> None:
    held = [ask(name)[0] for name in ("XRAY1", "XRAY2") for _ in range(PLACES // 2)]
    held[1].session.productive_at -= 10.0  # type: ignore[union-attr]
    assert not ask("XRAY3")[1]
    assert [each.cut_why for each in held if each.cut_why] == [
        "every slot is taken, and a peer without an association asks for one"
    ]
    assert held[1].cut_why
    # The peer now holds a slot, so nothing is evicted for a second.
    assert "limits.associations" in ask("XRAY3")[1]
    # Nothing is evicted for a system without an entry in `peers` either.
    assert "limits.associations" in ask("LOCAL", entry="", quota=None)[1]


def test_peers_with_one_association_each_are_not_evicted(
    ask: Callable[..., tuple[Running, str]],
) -> None:
    held = [ask(f"XRAY{number}")[0] for number in range(PLACES)]
    assert "limits.associations" in ask("LATE")[1]
    assert not [each.cut_why for each in held if each.cut_why]


def test_a_quota_comes_from_the_settings_or_is_half_of_the_slots() -> None:
    xray1 = Peer(ae_title="XRAY1", host="127.0.0.1", associations=50)
    xray2 = Peer(ae_title="XRAY2", host="127.0.0.1")

    def quota(calling: str, *peers: Peer, **more: Any) -> int | None:
        caller = AccessList("PLEURA", peers, slots=64, **more).admit("PLEURA", calling, "127.0.0.1")
        assert isinstance(caller, Caller)
        return caller.quota

    assert quota("XRAY1", xray1, xray2) == 50
    assert quota("XRAY2", xray1, xray2) == 32
    assert quota("XRAY2", xray2) == 64
    assert quota("ANYBODY") is None
    pacs = DicomDestination(name="p", ae_title="PACS", host="127.0.0.1", port=1, commitment=True)
    assert quota("XRAY2", xray2, committing=(pacs,)) == 32
    assert quota("PACS", xray2, committing=(pacs,)) == 32
    assert Config().limits.associations == 64
