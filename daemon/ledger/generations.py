"""Settings that either all processes of one machine take, or none.

A proposal gets a number, the generation. Each process of a role checks the settings and answers.
One refusal refuses the proposal for all. Once every process has agreed, the proposal is accepted,
and each process takes the settings. A decision and its audit event are one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from daemon.ledger.database import Database
from daemon.ledger.schema import generations, takers
from daemon.ledger.states import GenerationState

_LOCK = "generations"

# How long a process may take to check a proposal. The analyse role reads a model package.
ANSWER_S = 60.0
_KEPT_S = 400 * 86400.0
# Some sites send audit events as datagrams: longer texts are cut.
_MOST_CHARACTERS = 1000

# Records changed keys, and their audit event, within a running transaction.
Note = Callable[[Connection, float, Mapping[str, str], Mapping[str, str]], list[str]]
# Records the audit event of refused settings within a running transaction.
NoteRefusal = Callable[[Connection, float, Mapping[str, str]], None]


class BusyError(Exception):
    """Other settings are being checked right now."""


@dataclass(frozen=True)
class Found:
    """Settings as one process read them."""

    digest: str
    # A digest of each key, and each value without secrets.
    digests: Mapping[str, str]
    shown: Mapping[str, Any]


@dataclass(frozen=True)
class Generation:
    """Settings that the processes of a machine were asked to take."""

    number: int
    machine: str
    state: str
    digest: str
    shown: Mapping[str, Any]
    # Keys and values, before and after, a line each.
    changes: tuple[str, ...]
    asked_by: str
    asked_at: float
    decided_at: float | None
    why: str


@dataclass(frozen=True)
class Taker:
    """A process of a role: the generation it works under, and its last answer.

    `why` is empty where it can take the generation that it answered.
    """

    owner: str
    role: str
    generation: int
    answered: int
    why: str


class SettingsView:
    """Questions about generations; nothing here writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def generation(self, number: int) -> Generation | None:
        """The generation with this number."""
        return self._first(sa.select(generations).where(generations.c.number == number))

    def pending(self, machine: str) -> Generation | None:
        """The proposal that this machine's processes have to answer."""
        return self._first(_of(machine, GenerationState.PROPOSED))

    def in_force(self, machine: str) -> Generation | None:
        """The settings that this machine's processes accepted last."""
        return self._first(_of(machine, GenerationState.ACCEPTED))

    def last(self, machine: str) -> Generation | None:
        """The newest proposal of this machine, in any state."""
        return self._first(_of(machine))

    def takers(self) -> list[Taker]:
        """The processes of every machine; a process that died may still be among them."""
        query = sa.select(takers).order_by(takers.c.role, takers.c.owner)
        with self._database.reading() as conn:
            return [Taker(**row) for row in conn.execute(query).mappings()]

    def _first(self, query: sa.Select[Any]) -> Generation | None:
        with self._database.reading() as conn:
            return _read(conn, query)


class Generations:
    """The transitions of generations, each one transaction."""

    def __init__(self, database: Database, note: Note, note_refusal: NoteRefusal) -> None:
        self._database = database
        self._note = note
        self._note_refusal = note_refusal

    def begin(self, role: str, owner: str, found: Found, is_alive: Callable[[str], bool]) -> int:
        """A process starts with these settings.

        Returns its generation; rows of dead processes are deleted.

        It joins the generation in force if that has the same settings. Otherwise it makes another:
        a starting process has no earlier settings to keep.
        """
        machine = owner.rpartition(":")[0]
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _LOCK)
            current = _read(conn, _of(machine, GenerationState.ACCEPTED))

            if current is not None and current.digest == found.digest:
                number = current.number
            else:
                pending = _read(conn, _of(machine, GenerationState.PROPOSED))
                if pending is not None:
                    why = f"{role} started with other settings meanwhile; reload again"
                    self._refuse(conn, now, pending, why)
                asked_by = f"start of {role}"
                number = _insert(conn, now, machine, found, (), asked_by)
                _end(conn, now, number, GenerationState.ACCEPTED)

            conn.execute(takers.delete().where(_is(role, owner)))
            dead = [row.owner for row in _takers_of(conn, machine) if not is_alive(row.owner)]
            conn.execute(takers.delete().where(takers.c.owner.in_(dead)))
            row = {"owner": owner, "role": role, "generation": number, "answered": number}
            conn.execute(takers.insert().values(why="", **row))
            return number

    def propose(self, machine: str, found: Found, changes: Collection[str], asked_by: str) -> int:
        """Ask the machine's processes to take these settings. Returns the generation.

        Raises:
            BusyError: they are being asked to take other settings.
        """
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _LOCK)
            pending = _read(conn, _of(machine, GenerationState.PROPOSED))
            if pending is None:
                return _insert(conn, now, machine, found, changes, asked_by)

            if pending.digest != found.digest:
                raise BusyError(
                    f"the settings of generation {pending.number} are being checked; try again"
                )
            return pending.number

    def answer(self, role: str, owner: str, number: int, why: str = "") -> None:
        """Record that a process can take a proposal, or why it cannot."""
        with self._database.transaction() as (conn, _):
            conn.execute(takers.update().where(_is(role, owner)).values(answered=number, why=why))

    def decide(self, number: int, is_alive: Callable[[str], bool]) -> Generation:
        """End a proposal if its processes have answered, or have had their time.

        `is_alive` says of an owner whether its process still runs. Returns the proposal.
        """
        with self._database.transaction() as (conn, now):
            self._database.lock_until_commit(conn, _LOCK)
            query = sa.select(generations).where(generations.c.number == number)
            row = conn.execute(query).mappings().one()
            proposal = _generation(row)
            if proposal.state != GenerationState.PROPOSED.value:
                return proposal

            machine = row["machine"]
            mine = [each for each in _takers_of(conn, machine) if is_alive(each.owner)]
            refusals = [
                f"{each.role}: {each.why}" for each in mine if each.answered == number and each.why
            ]
            silent = sorted({each.role for each in mine if each.answered < number})

            if refusals:
                why = "\n".join(dict.fromkeys(refusals))
                self._refuse(conn, now, proposal, why)
            elif not silent:
                self._accept(conn, now, row)
            elif not now - ANSWER_S <= row["asked_at"] <= now:
                why = f"no answer of {', '.join(silent)} in {ANSWER_S:g} s; is it still starting?"
                self._refuse(conn, now, proposal, why)
            return _generation(conn.execute(query).mappings().one())

    def take(self, role: str, owner: str, number: int) -> None:
        """A process uses this generation from now on."""
        with self._database.transaction() as (conn, _):
            conn.execute(takers.update().where(_is(role, owner)).values(generation=number))

    def end(self, role: str, owner: str) -> None:
        """A process ends normally."""
        with self._database.transaction() as (conn, _):
            conn.execute(takers.delete().where(_is(role, owner)))

    def _accept(self, conn: Connection, now: float, row: sa.RowMapping) -> None:
        changes = "; ".join(json.loads(row["changes"]))
        facts = {"changes": changes[:_MOST_CHARACTERS], "by": row["asked_by"]}
        self._note(conn, now, json.loads(row["digests"]), facts)
        _end(conn, now, row["number"], GenerationState.ACCEPTED)

    def _refuse(self, conn: Connection, now: float, proposal: Generation, why: str) -> None:
        changes = "; ".join(proposal.changes)
        facts = {"changes": changes, "by": proposal.asked_by, "why": why}
        self._note_refusal(conn, now, {key: text[:_MOST_CHARACTERS] for key, text in facts.items()})
        _end(conn, now, proposal.number, GenerationState.REFUSED, why)


def _is(role: str, owner: str) -> sa.ColumnElement[bool]:
    return sa.and_(takers.c.role == role, takers.c.owner == owner)


def _takers_of(conn: Connection, machine: str) -> list[Taker]:
    query = sa.select(takers).where(takers.c.owner.startswith(f"{machine}:", autoescape=True))
    return [Taker(**row) for row in conn.execute(query).mappings()]


def _of(machine: str, state: GenerationState | None = None) -> sa.Select[Any]:
    """The newest generation of a machine, in this state."""
    query = sa.select(generations).where(generations.c.machine == machine)
    if state is not None:
        query = query.where(generations.c.state == state.value)
    return query.order_by(generations.c.number.desc()).limit(1)


def _read(conn: Connection, query: sa.Select[Any]) -> Generation | None:
    row = conn.execute(query).mappings().first()
    return None if row is None else _generation(row)


def _generation(row: sa.RowMapping) -> Generation:
    return Generation(
        number=row["number"],
        machine=row["machine"],
        state=row["state"],
        digest=row["digest"],
        shown=json.loads(row["shown"]),
        changes=tuple(json.loads(row["changes"])),
        asked_by=row["asked_by"],
        asked_at=row["asked_at"],
        decided_at=row["decided_at"],
        why=row["why"] or "",
    )


def _insert(
    conn: Connection,
    now: float,
    machine: str,
    found: Found,
    changes: Collection[str],
    asked_by: str,
) -> int:
    """Insert a proposal under the next number, and delete old rows."""
    last = conn.execute(sa.select(sa.func.max(generations.c.number))).scalar()
    number = (last or 0) + 1

    conn.execute(generations.delete().where(generations.c.decided_at < now - _KEPT_S))
    conn.execute(
        generations.insert().values(
            number=number,
            machine=machine,
            state=GenerationState.PROPOSED.value,
            digest=found.digest,
            digests=json.dumps(dict(found.digests)),
            shown=json.dumps(dict(found.shown)),
            changes=json.dumps(list(changes)),
            asked_by=asked_by,
            asked_at=now,
        )
    )
    return number


def _end(
    conn: Connection, now: float, number: int, state: GenerationState, why: str | None = None
) -> None:
    mine = generations.update().where(generations.c.number == number)
    conn.execute(mine.values(state=state.value, decided_at=now, why=why))
