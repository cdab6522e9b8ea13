"""The queries that the roles repeat all day use the partial indexes, so their cost does not grow
with years of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.ledger import fill
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.view import Search, View


def _search(ledger: Ledger, **search: Any) -> None:
    view = View.open(ledger.url)
    view.images(Search(**search))
    view.close()


_ASKS: dict[str, tuple[str, Callable[[Ledger], object]]] = {
    "waiting": ("FROM instances", lambda ledger: ledger.claim_images("me", 8)),
    "owed": ("FROM deliveries", lambda ledger: ledger.claim_deliveries("pacs", "me", 8)),
    "uncommitted": ("FROM deliveries", lambda ledger: ledger.ask_commitment("pacs", 8, 60.0)),
    "kept_bytes": ("FROM instances", lambda ledger: ledger.give_up_bytes(0.0, 0.0, ["pacs"], 8)),
    "instances_by_state": ("FROM instances", lambda ledger: ledger.inspect.troubles()),
    "positives": ("FROM instances", lambda ledger: _search(ledger, is_positive=True)),
    "instances_by_reason": ("FROM instances", lambda ledger: _search(ledger, reason="view")),
    "instances_by_sender": (
        "LIMIT",
        lambda ledger: _search(ledger, sender="XRAY9", state="analysed"),
    ),
    "troubled": ("FROM deliveries", lambda ledger: ledger.inspect.troubles()),
    "same_image": (
        "content_digest = ",
        lambda ledger: ledger.complete(
            ledger.claim_images("me", 1)[0], Completion("analysed", "d"), {}
        ),
    ),
    "instances_by_file": (
        "FROM instances",
        lambda ledger: ledger.inspect.known_spool_names(["file"]),
    ),
    "results_by_file": ("FROM results", lambda ledger: ledger.inspect.known_spool_names(["file"])),
}

# Indexes whose order a claim relies on: it must not sort a long queue.
_IN_ORDER = ("waiting", "owed")


@pytest.fixture
def url(ledger_url: str) -> str:
    """The URL of a ledger with many finished images and work in every queue."""
    ledger = Ledger(ledger_url)
    fill(ledger_url, 3000)
    ledger.receive(
        [Arrival(f"new-{n}", "1.2", f"1.2.{n}", "1.2.1", "XRAY1", "dimse", 1, 9) for n in range(30)]
    )

    for job in ledger.claim_images("me", 20):
        made = StoredResult("SC", f"made-{job.id}", "1.2", f"9.{job.id}", "1.2.1", 9)
        ledger.complete(job, Completion("analysed", "d", results=(made,)), {"pacs": ["SC"]})
    for parcel in ledger.claim_deliveries("pacs", "me", 10):
        ledger.mark_stored(parcel, 0, commitment=True)

    ledger.close()
    engine = sa.create_engine(ledger_url)
    # The server itself does this within a minute.
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()
    return ledger_url


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """The list to which every executed SQL statement is added, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def test_each_index_is_used(url: str) -> None:
    for index, (text, ask) in _ASKS.items():
        plan = _plan(url, text, ask)
        assert re.search(rf"(INDEX|using|on) {index}\b", plan), f"{index}: {plan}"
        assert "Seq Scan" not in plan, f"{index}: {plan}"
        if index in _IN_ORDER:
            assert "Sort" not in plan, f"{index}: {plan}"
            assert "TEMP B-TREE" not in plan, f"{index}: {plan}"


def _plan(url: str, text: str, ask: Callable[[Ledger], object]) -> str:
    """The query plan of the first query of `ask` that contains `text`."""
    ledger = Ledger(url)
    with statements() as seen:
        ask(ledger)
    ledger.close()
    statement, parameters = next(
        (query, values)
        for query, values in seen
        if text in " ".join(query.split()) and "SELECT" in query
    )

    engine = sa.create_engine(url)
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as conn:
        rows = conn.exec_driver_sql(f"{explain} {statement}", parameters)
        plan = "\n".join(str(tuple(row)) for row in rows)
    engine.dispose()
    return plan
