"""Migration of a version 1 ledger: nothing is lost, all work continues, and the tables equal newly
created tables.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.schema import STEPS, deliveries, instances, results
from daemon.ledger.version import SCHEMA_VERSION

# The tables as version 1 created them; never change this. The databases differ only in {id}.
VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE instances (
    id {id} NOT NULL, spool_name TEXT NOT NULL, sop_class_uid TEXT NOT NULL, sop_instance_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL, study_instance_uid TEXT, calling_ae_title TEXT NOT NULL, origin TEXT NOT NULL,
    priority INTEGER NOT NULL, size_bytes BIGINT NOT NULL, received_at FLOAT NOT NULL, state TEXT NOT NULL,
    reason TEXT, detail TEXT, content_digest TEXT, duplicate_of INTEGER, probability FLOAT, positive BOOLEAN,
    model TEXT, completed_at FLOAT, owner TEXT, lease_until FLOAT NOT NULL, attempt INTEGER NOT NULL,
    unfinished INTEGER NOT NULL, unfinished_alone INTEGER NOT NULL, PRIMARY KEY (id)
);
CREATE INDEX same_image ON instances (sop_instance_uid, content_digest);
CREATE INDEX waiting ON instances (state, priority, id);
CREATE TABLE results (
    id {id} NOT NULL, instance_id INTEGER NOT NULL, kind TEXT NOT NULL, spool_name TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL, sop_instance_uid TEXT NOT NULL, transfer_syntax_uid TEXT NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(instance_id) REFERENCES instances (id), UNIQUE (sop_instance_uid)
);
CREATE INDEX ix_results_instance_id ON results (instance_id);
CREATE TABLE deliveries (
    id {id} NOT NULL, result_id INTEGER NOT NULL, destination TEXT NOT NULL, priority INTEGER NOT NULL,
    state TEXT NOT NULL, status INTEGER, why TEXT, due_at FLOAT NOT NULL, owner TEXT, lease_until FLOAT NOT NULL,
    attempt INTEGER NOT NULL, failures INTEGER NOT NULL, stored_at FLOAT, PRIMARY KEY (id),
    FOREIGN KEY(result_id) REFERENCES results (id)
);
CREATE INDEX ix_deliveries_result_id ON deliveries (result_id);
CREATE INDEX owed ON deliveries (destination, state, priority, id);
"""

# Images that wait, that were in work when the old version ended, and that reached each end state.
_IMAGE = (
    "INSERT INTO instances (spool_name, sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae_title, origin,"
    " priority, size_bytes, received_at, state, reason, content_digest, duplicate_of, completed_at, owner, lease_until,"
    " attempt, unfinished, unfinished_alone) VALUES ('image-{uid}', '1.2.840', '{uid}', '1.2.1', 'XRAY1', 'dimse', 1,"
    " 9, 100, {rest})"
)
_RESULT = "INSERT INTO results (instance_id, kind, spool_name, sop_class_uid, sop_instance_uid, transfer_syntax_uid)"
_DELIVERY = (
    "INSERT INTO deliveries (result_id, destination, priority, state, status, due_at, owner, lease_until, attempt,"
    " failures, stored_at)"
)
ROWS = (
    _IMAGE.format(uid="1.1", rest="'received', NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0"),
    _IMAGE.format(uid="1.2", rest="'received', NULL, NULL, NULL, NULL, 'gone:1', 150, 1, 1, 0"),
    _IMAGE.format(uid="1.3", rest="'analysed', NULL, 'a', NULL, 110, NULL, 150, 1, 1, 0"),
    _IMAGE.replace("-{uid}", "-again").format(
        uid="1.3", rest="'duplicate', NULL, 'a', 3, 111, NULL, 150, 1, 1, 0"
    ),
    _IMAGE.format(uid="1.4", rest="'not_analysed', 'modality', 'b', NULL, 110, NULL, 150, 1, 1, 0"),
    _IMAGE.format(uid="1.5", rest="'failed', 'decode', 'c', NULL, 110, NULL, 150, 3, 3, 2"),
    f"{_RESULT} VALUES (3, 'SEG', 'made-1', '1.2.5', '9.1', '1.2.1')",
    f"{_RESULT} VALUES (3, 'SC', 'made-2', '1.2.6', '9.2', '1.2.1')",
    f"{_RESULT} VALUES (6, 'SC', 'made-3', '1.2.6', '9.3', '1.2.1')",
    f"{_DELIVERY} VALUES (1, 'pacs', 1, 'owed', NULL, 110, NULL, 0, 0, 0, NULL)",
    f"{_DELIVERY} VALUES (2, 'pacs', 1, 'owed', 42752, 120, 'gone:2', 150, 2, 1, NULL)",
    f"{_DELIVERY} VALUES (2, 'outbox', 1, 'stored', 0, 110, NULL, 150, 1, 0, 130)",
    f"{_DELIVERY} VALUES (3, 'pacs', 1, 'refused', 290, 110, NULL, 150, 1, 1, NULL)",
)


@pytest.fixture
def old_url(ledger_url: str) -> str:
    """The URL of a ledger as version 1 left it."""
    write_version_1(ledger_url)
    return ledger_url


@pytest.fixture
def ledger(old_url: str) -> Iterator[Ledger]:
    ledger = Ledger(old_url, clock=lambda: 1000.0)
    yield ledger
    ledger.close()


def write_version_1(url: str) -> None:
    engine = sa.create_engine(url)
    tables = VERSION_1.format(id="INTEGER" if engine.dialect.name == "sqlite" else "SERIAL").split(
        ";"
    )
    with engine.begin() as conn:
        for statement in (*filter(str.strip, tables), *ROWS):
            conn.exec_driver_sql(statement)
    engine.dispose()


def rows(url: str) -> dict[str, list[dict[str, Any]]]:
    engine = sa.create_engine(url)
    with engine.connect() as conn:
        found = {
            name: [
                dict(row)
                for row in conn.exec_driver_sql(f"SELECT * FROM {name} ORDER BY id").mappings()
            ]
            for name in ("instances", "results", "deliveries")
        }
    engine.dispose()
    return found


def shape(url: str) -> dict[str, Any]:
    """Columns, keys and indexes as the database reports them, in a comparable form."""
    engine = sa.create_engine(url)
    look = sa.inspect(engine)
    found: dict[str, Any] = {}

    for table in look.get_table_names():
        found[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column.get("default"))
                for column in look.get_columns(table)
            },
            "key": look.get_pk_constraint(table)["constrained_columns"],
            "references": [
                (key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in look.get_foreign_keys(table)
            ],
            "unique": [one["column_names"] for one in look.get_unique_constraints(table)],
        }

    texts = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if engine.dialect.name == "sqlite"
        else "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )

    with engine.connect() as conn:
        found["indexes"] = {(name, text) for name, text in conn.exec_driver_sql(texts)}
        found["version"] = conn.exec_driver_sql("SELECT version FROM schema_version").scalar_one()
    engine.dispose()
    return found


def test_a_migration_keeps_every_row(old_url: str) -> None:
    before = rows(old_url)
    Ledger(old_url).close()
    after = rows(old_url)
    for name, found in before.items():
        assert [
            {key: row[key] for key in old} for old, row in zip(found, after[name], strict=True)
        ] == found
    assert {len(found) for found in before.values()} == {6, 3, 4}


def test_the_old_ledger_file_is_kept_unchanged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    kept = tmp_path / "ledger.db.version-1"
    write_version_1(url)
    before = rows(url)
    Ledger(url).close()
    assert rows(f"sqlite:///{kept}") == before
    assert [file.name for file in tmp_path.glob("*.part")] == []

    # Roll back and upgrade again.
    kept.replace(tmp_path / "ledger.db")
    Ledger(url).close()
    assert rows(f"sqlite:///{kept}") == before
    kept.unlink()
    Ledger(url).close()
    assert not kept.exists()


def test_a_migration_is_logged_only_after_it_succeeded(
    old_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:
        patched.setitem(STEPS, SCHEMA_VERSION - 1, ("no SQL",))
        with pytest.raises(sa.exc.DBAPIError):
            Ledger(old_url)
    assert "migrated" not in caplog.text

    Ledger(old_url).close()
    assert f"migrated from schema version 1 to {SCHEMA_VERSION}" in caplog.text


def test_a_ledger_that_cannot_be_copied_is_not_migrated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    write_version_1(url)
    before = shape(url)
    # Put a folder in the place of the copy.
    (tmp_path / "ledger.db.part" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match=r"ledger\.db\.part"):
        Ledger(url)
    assert shape(url) == before


def test_migrated_tables_equal_newly_created_tables(
    old_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    Ledger(old_url).close()
    upgraded = shape(old_url)

    engine = sa.create_engine(old_url)
    if engine.dialect.name == "sqlite":
        engine.dispose()
        new_url = f"sqlite:///{tmp_path}/new.db"
    else:
        with engine.begin() as conn:
            conn.exec_driver_sql("DROP SCHEMA public CASCADE")
            conn.exec_driver_sql("CREATE SCHEMA public")
        engine.dispose()
        new_url = old_url

    Ledger(new_url).close()
    assert upgraded == shape(new_url)
    assert upgraded["version"] == SCHEMA_VERSION
    assert any("WHERE" in text for _, text in upgraded["indexes"])


def test_waiting_images_are_analysed_and_images_in_work_are_claimed_alone(ledger: Ledger) -> None:
    (first,) = ledger.claim_images("me", 9)
    assert first.sop_instance_uid == "1.1"
    (second,) = ledger.claim_images("me", 9)
    assert (second.sop_instance_uid, second.attempt) == ("1.2", 2)

    made = StoredResult("SC", "made-9", "1.2.6", "9.9", "1.2.1", 4)
    ledger.renew([first, second])
    assert (
        ledger.complete(first, Completion("analysed", "z", results=(made,)), {"pacs": ["SC"]})
        == "analysed"
    )

    ledger.abandon(second)
    (again,) = ledger.claim_images("me", 9)
    ledger.give_back(again)

    assert ledger.inspect.counts()["instances"] == {
        "received": 1,
        "analysed": 2,
        "not_analysed": 1,
        "failed": 1,
    }


def test_a_resent_image_is_a_duplicate_of_the_old_versions(ledger: Ledger) -> None:
    ledger.claim_images("me", 9)
    ledger.claim_images("me", 9)
    ledger.receive([Arrival("new", "1.2.840", "1.3", "1.2.1", "XRAY1", "dimse", 1, 9)])
    (job,) = ledger.claim_images("me", 9)
    assert ledger.complete(job, Completion("analysed", "a"), {}) == "duplicate"


def test_owed_results_are_delivered_and_committed(ledger: Ledger) -> None:
    first, second = ledger.claim_deliveries("pacs", "me", 9)
    assert (first.result.sop_instance_uid, first.result.size_bytes) == ("9.1", None)
    assert (second.failures, second.attempt) == (1, 3)

    ledger.mark_stored(first, 0, commitment=True)
    ledger.retry_later(second, "trouble", 0.0)
    request = ledger.ask_commitment("pacs", 9, 60.0)
    assert request is not None
    assert request.references == (("1.2.5", "9.1"),)
    assert ledger.record_commitment_report("pacs", request.transaction_uid, ["9.1"], {}, {})

    # No commitment is requested for results that the old version stored.
    assert ledger.ask_commitment("outbox", 9, 60.0) is None
    assert ledger.inspect.counts()["deliveries"] == {
        "owed": 1,
        "stored": 1,
        "committed": 1,
        "refused": 1,
    }


def test_failed_images_and_refused_results_can_be_retried(ledger: Ledger) -> None:
    assert ledger.rearm(["failed", "refused"], []) == 2
    assert (
        ledger.inspect.counts()["deliveries"]["refused"]
        == ledger.inspect.counts()["instances"]["failed"]
        == 0
    )


def test_lost_results_are_remade(ledger: Ledger) -> None:
    first, _ = ledger.claim_deliveries("pacs", "me", 9)
    assert ledger.remake(first, "its file is lost")
    assert ledger.inspect.counts()["instances"]["received"] == 3


def test_bytes_are_given_up_and_counted(ledger: Ledger) -> None:
    images = {"image-1.1", "image-1.2", "image-1.3", "image-again", "image-1.4", "image-1.5"}
    assert {one.spool_name for one in ledger.inspect.kept_files()} == images | {
        "made-1",
        "made-2",
        "made-3",
    }
    # The analysed image is owed; its duplicate and the image not analysed may be removed now, the
    # failed image later.
    assert sorted(ledger.give_up_bytes(10.0, 10_000.0, ["pacs"], 9)) == ["image-1.4", "image-again"]
    assert ledger.inspect.contradictions() == []


def test_of_many_processes_that_open_a_ledger_one_migrates_it(old_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    names = context.Queue()
    processes = [
        context.Process(target=_open_and_claim, args=(old_url, start, names)) for _ in range(3)
    ]

    for process in processes:
        process.start()
    claimed = sorted(name for _ in processes for name in names.get(timeout=120))
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert claimed == ["1.1", "1.2"]
    assert shape(old_url)["version"] == SCHEMA_VERSION
    assert {table: len(found) for table, found in rows(old_url).items()} == {
        instances.name: 6,
        results.name: 3,
        deliveries.name: 4,
    }


def _open_and_claim(url: str, start: Any, names: Any) -> None:
    start.wait(60)
    ledger = Ledger(url)
    names.put([job.sop_instance_uid for job in ledger.claim_images("me", 1)])
    ledger.close()
