"""An archive that answers but does not store: what is refused, what is retried, and which alarms
are raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.alerts.watch import Watch
from daemon.commands import status
from daemon.dicom.link import LinkDownError, NotAcceptedError
from tests.unit.simulated import HOUR_S, MINUTE_S, Answers, World

# Statuses for the archive's own troubles: processing failure, and an unassigned status.
_PASSING = (0x0110, 0xFFFF)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(answers: Answers, every_s: float = MINUTE_S) -> World:
        worlds.append(World(tmp_path, f"sqlite:///{tmp_path}/ledger.db", answers, every_s))
        return worlds[-1]

    yield make
    for each in worlds:
        each.ledger.close()


def alarms(world: World) -> dict[str, str]:
    """Kind -> words of each open trouble of the destination."""
    Watch(world.config, world.ledger).look()
    lasting: list[Any] = world.ledger.alarms.lasting()
    return {row["kind"]: row["words"] for row in lasting if row["subject"] == "pacs"}


@pytest.mark.parametrize("answer", _PASSING)
def test_an_archive_that_stores_nothing_is_down_and_raises_an_alarm(
    world: Callable[..., World], answer: int
) -> None:
    ill = world(lambda _, seconds: answer if seconds < 25 * MINUTE_S else 0)
    ill.run(24 * MINUTE_S)
    assert ill.counts().keys() == {"owed"}
    assert ill.destination()["down_since"] == pytest.approx(ill.start, abs=2)
    assert f"0x{answer:04X}" in str(ill.destination()["last_answer"])
    assert f"0x{answer:04X}" in alarms(ill)["outage"]
    # The courier probes it with one object at a time, with growing back-off.
    assert len(ill.tries) < 5 * len(ill.made)

    ill.run(40.5 * MINUTE_S)
    assert ill.counts() == {"stored": len(ill.made)}
    assert ill.destination()["down_since"] is None


def test_an_object_that_is_never_stored_raises_an_alarm_and_delays_no_other(
    world: Callable[..., World],
) -> None:
    """The archive stores all other objects, so the archive is not down."""
    one = world(lambda uid, _: 0x0110 if uid == "2.25.3" else 0, every_s=7 * MINUTE_S)
    one.run(59 * MINUTE_S)
    assert "owed" not in alarms(one)

    one.run(80 * MINUTE_S)
    assert one.counts() == {"owed": 1, "stored": len(one.made) - 1}
    assert one.destination().get("down_since") is None
    found = alarms(one)
    assert found.keys() == {"owed"}
    assert "results owed: 1" in found["owed"]
    assert "0x0110" in found["owed"]
    assert max(at - one.made[uid] for uid, at in one.stored.items()) < 5

    lines = "\n".join(status.lines(one.ledger.inspect, ["pacs"], one.spool.folder))
    assert "destination pacs: 1 owed since" in lines
    assert ", the oldest: " in lines
    assert "0x0110" in lines


def test_an_archive_that_refuses_objects_is_not_down(world: Callable[..., World]) -> None:
    """Each refusal is reported separately."""
    strict = world(lambda *_: 0xA900)
    strict.run(20.5 * MINUTE_S)
    assert strict.counts() == {"refused": len(strict.made)}
    assert strict.destination().get("down_since") is None
    assert strict.destination().get("last_answer") != "it stores"
    assert alarms(strict).keys() == {"refused"}


def test_two_hours_of_cannot_understand_lead_to_no_refusal(world: Callable[..., World]) -> None:
    """Archives give this answer while their database restarts."""
    ill = world(lambda _, seconds: 0xC000 if seconds < 2 * HOUR_S else 0, every_s=20 * MINUTE_S)
    ill.run(1.9 * HOUR_S)
    assert ill.counts() == {"owed": len(ill.made)}
    assert max(row["failures"] for row in ill.deliveries()) > 8
    assert ill.destination()["down_since"] is not None
    assert alarms(ill).keys() == {"outage", "owed"}
    # A new courier without this one's memory decides the same.
    ill.restart()
    ill.run(2.5 * HOUR_S)
    assert ill.counts() == {"stored": len(ill.made)}


def test_an_object_that_is_not_understood_while_others_are_stored_is_refused(
    world: Callable[..., World],
) -> None:
    one = world(lambda uid, _: 0xC000 if uid == "2.25.3" else 0)
    one.run(15.5 * MINUTE_S)
    assert one.counts() == {"refused": 1, "stored": len(one.made) - 1}
    assert len([uid for _, uid in one.tries if uid == "2.25.3"]) >= 8


def test_a_lone_object_that_is_never_understood_is_finally_refused(
    world: Callable[..., World],
) -> None:
    """Without any other object to compare it with, and despite a restart."""
    alone = world(lambda *_: 0xC000, every_s=1000 * HOUR_S)
    alone.run(3 * HOUR_S)
    alone.restart()
    alone.run(5.9 * HOUR_S)
    assert alone.counts() == {"owed": 1}
    alone.run(6.5 * HOUR_S)
    assert alone.counts() == {"refused": 1}


@pytest.mark.parametrize("is_lasting", [False, True])
def test_a_rejected_context_leads_to_a_refusal_only_for_a_lasting_reason(
    world: Callable[..., World], is_lasting: bool
) -> None:
    """The other presentation contexts of its associations are accepted."""

    def answers(uid: str, seconds: float) -> int:
        if uid == "2.25.3" and seconds < 30 * MINUTE_S:
            raise NotAcceptedError("no presentation context", is_lasting, accepts_others=True)
        return 0

    picky = world(answers, every_s=5 * MINUTE_S)
    picky.run(28 * MINUTE_S)
    assert picky.counts().keys() == {"stored", "refused" if is_lasting else "owed"}
    assert picky.destination().get("down_since") is None
    picky.run(44 * MINUTE_S)
    assert picky.counts().get("refused", 0) == is_lasting
    assert "owed" not in picky.counts()


def test_a_sop_class_that_is_rejected_alone_is_refused_once_others_are_stored(
    world: Callable[..., World],
) -> None:
    def answers(uid: str, _: float) -> int:
        if uid == "2.25.3":
            raise NotAcceptedError("no presentation context", accepts_others=False)
        return 0

    picky = world(answers)
    picky.run(8.5 * MINUTE_S)
    assert picky.counts() == {"stored": len(picky.made) - 1, "refused": 1}
    assert picky.destination()["down_since"] is None


@pytest.mark.parametrize("is_declined", [False, True])
def test_an_outage_ends_when_an_object_that_is_at_fault_is_answered_again(
    world: Callable[..., World], is_declined: bool
) -> None:
    """Only that object is left when the archive is reached again: nothing can be stored."""

    def answers(uid: str, seconds: float) -> int:
        if 15 * MINUTE_S <= seconds < 40 * MINUTE_S:
            raise LinkDownError("cannot connect")
        if uid == "2.25.1" and is_declined:
            raise NotAcceptedError("no presentation context", is_lasting=False)
        return 0x0110 if uid == "2.25.1" else 0

    quiet = world(answers, every_s=5 * MINUTE_S)
    quiet.run(14 * MINUTE_S)
    assert quiet.counts() == {"owed": 1, "stored": 2}
    quiet.sends_no_more()
    quiet.run(39 * MINUTE_S)
    assert alarms(quiet).keys() == {"outage"}

    quiet.run(59 * MINUTE_S)
    assert quiet.counts() == {"owed": 1, "stored": 2}
    assert quiet.destination()["down_since"] is None


def test_a_lone_object_that_is_declined_for_a_passing_reason_is_no_outage(
    world: Callable[..., World],
) -> None:
    """The other contexts of its associations are accepted."""

    def answers(_: str, __: float) -> int:
        raise NotAcceptedError("no presentation context", is_lasting=False, accepts_others=True)

    alone = world(answers, every_s=1000 * HOUR_S)
    alone.ledger.note_destination("pacs", "an earlier process: cannot connect", 1.0)
    alone.run(HOUR_S - MINUTE_S)
    assert alone.counts() == {"owed": 1}
    assert alone.destination()["down_since"] is None


def test_an_outage_noted_by_another_courier_ends_once_an_object_is_stored(
    world: Callable[..., World],
) -> None:
    """Two hosts deliver to the same destination, and one of them cannot reach it."""
    one = world(lambda *_: 0)
    one.run(2.5 * MINUTE_S)
    one.ledger.note_destination("pacs", "the other host: cannot connect", 5.0)
    assert one.destination()["down_since"] is not None
    one.run(4.5 * MINUTE_S)
    assert one.destination()["down_since"] is None
    assert one.destination()["last_answer"] == "it stores"


def test_a_resent_object_counts_as_owed_since_its_resend(world: Callable[..., World]) -> None:
    forgetful = world(lambda *_: 0)
    forgetful.run(10.5 * MINUTE_S)
    forgetful.clock.now += 30 * 24 * HOUR_S
    assert forgetful.ledger.resend("pacs", since=0.0)[0] == len(forgetful.made)
    assert alarms(forgetful) == {}
    forgetful.clock.now += 2 * HOUR_S
    assert alarms(forgetful).keys() == {"owed"}


@pytest.mark.parametrize("answer", [0xA700, 0x0110, 0xFFFF])
def test_objects_that_are_never_stored_keep_no_other_from_being_tried(
    world: Callable[..., World], answer: int
) -> None:
    """An archive whose store for one kind is full takes the other kinds, as they come."""
    first_other = 40

    def answers(uid: str, _: float) -> int:
        number = int(uid.removeprefix("2.25."))
        return 0 if number >= first_other and number % 4 == 0 else answer

    partly = world(answers, every_s=10 * MINUTE_S)
    partly.run(20 * HOUR_S)
    others = [uid for uid in partly.made if answers(uid, 0.0) == 0]
    assert len(others) > 10
    waits = {uid: partly.stored.get(uid, 1e9) - partly.made[uid] for uid in others}
    assert max(waits.values()) < 11 * MINUTE_S
