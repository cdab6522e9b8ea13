"""The ledger's tables. Rows outlive the bytes that they describe.

Times are seconds since 1970 on the ledger's clock.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

schema_version = sa.Table(
    "schema_version", metadata, sa.Column("version", sa.Integer, nullable=False)
)


def state_is(table: sa.Table, state: str) -> sa.ColumnElement[bool]:
    """`state = '...'` as a literal: a partial index is used only if the planner sees it."""
    return table.c.state == sa.literal_column(f"'{state}'")


def state_is_not(table: sa.Table, state: str) -> sa.ColumnElement[bool]:
    """`state != '...'`: add it to every query on ended rows, so that their partial index is used.

    That index leaves out waiting rows. They are found in their own index, in the order of claims.
    """
    return table.c.state != sa.literal_column(f"'{state}'")


_partial: dict[sa.Index, sa.ColumnElement[bool]] = {}


def _partial_index(name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool]) -> None:
    """An index of the rows that `where` selects, on both databases."""
    _partial[sa.Index(name, *columns)] = where


def create_tables(conn: sa.Connection) -> None:
    """Create every table and index."""
    # Only here, and for one dialect: naming a dialect imports it, which costs each process 90 ms.
    for index, where in _partial.items():
        index.dialect_options[conn.dialect.name]["where"] = where
    metadata.create_all(conn)


# One row for each accepted instance, kept after its bytes are gone.
instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("spool_name", sa.Text, nullable=False),
    sa.Column("sop_class_uid", sa.Text, nullable=False),
    sa.Column("sop_instance_uid", sa.Text, nullable=False),
    sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
    sa.Column("study_instance_uid", sa.Text),
    sa.Column("calling_ae_title", sa.Text, nullable=False),
    # The sender's address. Null: the inbox, or received before version 5.
    sa.Column("calling_address", sa.Text),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    # states.ImageState
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("content_digest", sa.Text),
    sa.Column("duplicate_of", sa.Integer),
    sa.Column("probability", sa.Float),
    sa.Column("positive", sa.Boolean),
    sa.Column("model", sa.Text),
    sa.Column("completed_at", sa.Float),
    # The device that the networks ran on.
    sa.Column("device", sa.Text),
    # Manufacturer and model name of the X-ray system, from the header. Null: before version 6.
    sa.Column("device_model", sa.Text),
    # A keyed digest of the Accession Number, to look it up; never the number (digests.py).
    sa.Column("accession_digest", sa.Text),
    # The lease. `unfinished` counts attempts that began and did not end; `unfinished_alone` counts
    # those of them that ran alone.
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("unfinished", sa.Integer, nullable=False),
    sa.Column("unfinished_alone", sa.Integer, nullable=False),
    # The time in the first results. Results that are made again carry the same time.
    sa.Column("result_time", sa.Float),
    # How often lost result files were made again.
    sa.Column("remakes", sa.Integer, nullable=False, server_default="0"),
    # When retention removed the bytes of the image and of its results.
    sa.Column("removed_at", sa.Float),
    # JSON: the steps of the analysis -> seconds from the claim to the end of each (timeline.py).
    # Null: before version 7.
    sa.Column("steps", sa.Text),
)
_partial_index(
    "waiting",
    instances.c.priority,
    instances.c.id,
    where=state_is(instances, "received"),
)
_partial_index(
    "instances_by_state",
    instances.c.state,
    instances.c.id,
    where=state_is_not(instances, "received"),
)
sa.Index("same_image", instances.c.sop_instance_uid, instances.c.content_digest)
sa.Index("instances_by_file", instances.c.spool_name)
_partial_index(
    "instances_by_study",
    instances.c.study_instance_uid,
    where=instances.c.study_instance_uid.is_not(None),
)
_partial_index(
    "instances_by_accession",
    instances.c.accession_digest,
    where=instances.c.accession_digest.is_not(None),
)
# For the operator's page, newest first. Without waiting rows: receiving writes to as few pages of
# the database as possible.
_partial_index(
    "instances_by_sender",
    instances.c.calling_ae_title,
    instances.c.id,
    where=state_is_not(instances, "received"),
)
_partial_index(
    "instances_by_reason",
    instances.c.reason,
    instances.c.id,
    where=instances.c.reason.is_not(None),
)
# As text: SQLAlchemy spells it differently for each database, and the index needs this spelling.
# Without a type: for a Boolean, SQLAlchemy would write "positive IS TRUE = 1" on SQLite, which does
# not use the index.
is_positive: sa.ColumnElement[bool] = sa.literal_column("positive IS TRUE")
_partial_index("positives", instances.c.id, where=is_positive)
# Without waiting rows, as above.
_partial_index(
    "kept_bytes",
    instances.c.completed_at,
    where=instances.c.removed_at.is_(None) & instances.c.completed_at.is_not(None),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("instance_id", sa.ForeignKey("instances.id"), nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("spool_name", sa.Text, nullable=False),
    sa.Column("sop_class_uid", sa.Text, nullable=False),
    sa.Column("sop_instance_uid", sa.Text, nullable=False, unique=True),
    sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
    # Null: written before version 2.
    sa.Column("size_bytes", sa.BigInteger),
)
sa.Index("results_by_file", results.c.spool_name)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("result_id", sa.ForeignKey("results.id"), nullable=False, index=True),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    # states.DeliveryState
    sa.Column("state", sa.Text, nullable=False),
    # The last DIMSE status.
    sa.Column("status", sa.Integer),
    sa.Column("why", sa.Text),
    # Since when it is owed, or owed again. Null: it ended before version 8.
    sa.Column("owed_at", sa.Float),
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    # How many answers had a failure status. Outages do not count.
    sa.Column("failures", sa.Integer, nullable=False),
    # When the first of them came.
    sa.Column("failing_since", sa.Float),
    sa.Column("stored_at", sa.Float),
    # When to ask for storage commitment (again). Null: the destination is not asked.
    sa.Column("commit_due_at", sa.Float),
    sa.Column("commit_asks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("committed_at", sa.Float),
    # As for an image: the steps of the delivery that stored it.
    sa.Column("steps", sa.Text),
)
_partial_index(
    "owed",
    deliveries.c.destination,
    deliveries.c.priority,
    deliveries.c.id,
    where=state_is(deliveries, "owed"),
)
_partial_index(
    "owed_by_age",
    deliveries.c.destination,
    deliveries.c.owed_at,
    where=state_is(deliveries, "owed"),
)
_partial_index(
    "uncommitted",
    deliveries.c.destination,
    deliveries.c.commit_due_at,
    where=state_is(deliveries, "stored") & deliveries.c.commit_due_at.is_not(None),
)
_partial_index(
    "uncommitted_by_age",
    deliveries.c.destination,
    deliveries.c.stored_at,
    where=state_is(deliveries, "stored") & deliveries.c.commit_due_at.is_not(None),
)
_partial_index(
    "deliveries_by_state",
    deliveries.c.state,
    deliveries.c.id,
    where=state_is_not(deliveries, "owed"),
)
_partial_index(
    "troubled",
    deliveries.c.id,
    where=deliveries.c.why.is_not(None),
)

# One row for each storage commitment request. Its report may come at any time, or never.
commitments = sa.Table(
    "commitments",
    metadata,
    sa.Column("transaction_uid", sa.Text, primary_key=True),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("asked_at", sa.Float, nullable=False),
    sa.Column("reported_at", sa.Float),
)

# One row: the identity of the spool that the files lie in, which its marker carries too (spool.py).
spools = sa.Table("spools", metadata, sa.Column("identity", sa.Text, primary_key=True))

# Folder destinations that results went to: each carries a mark since (folder.py).
folders = sa.Table("folders", metadata, sa.Column("path", sa.Text, primary_key=True))

# One row for each destination that was in trouble: its courier writes it, `pleura status` reads it.
destinations = sa.Table(
    "destinations",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # Null: it takes objects again.
    sa.Column("down_since", sa.Float),
    # In words.
    sa.Column("last_answer", sa.Text, nullable=False),
    sa.Column("answered_at", sa.Float, nullable=False),
    sa.Column("next_try_at", sa.Float),
)

# One row for each name that results are owed to and the settings do not have.
unknown_destinations = sa.Table(
    "unknown_destinations",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # When that was first seen.
    sa.Column("since", sa.Float, nullable=False),
)

# One row: the last look at the ledger's clock (leaps.py).
clock = sa.Table(
    "clock",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("seen_at", sa.Float, nullable=False),
    # When it leapt last, on the clock as it was after that.
    sa.Column("steady_since", sa.Float, nullable=False),
    # By how many seconds. 0: it never did.
    sa.Column("leapt_s", sa.Float, nullable=False),
)

# One row for each process of a role: its last heartbeat.
roles = sa.Table(
    "roles",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("beat_at", sa.Float, nullable=False),
    # JSON: what the process reports of itself (heartbeat.py). Null: before version 6.
    sa.Column("facts", sa.Text),
)

# One row for each audit event that still waits for the repository or the file.
audit = sa.Table(
    "audit",
    metadata,
    # Without a gap, in the order of the commits. It is the message's identity.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Float, nullable=False),
    # One of daemon/audit/message.py.
    sa.Column("event", sa.Text, nullable=False),
    # JSON: names and texts. Never a patient's value.
    sa.Column("facts", sa.Text, nullable=False),
)

# One row: the last number that was given, the last that the file has, the sender's lease, and what
# was not recorded because too many events waited.
audit_state = sa.Table(
    "audit_state",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("last_number", sa.Integer, nullable=False),
    sa.Column("filed", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    # The number of the event that records the stop of recording. Null: events are recorded.
    sa.Column("stopped_at", sa.Integer),
    # How many events were not recorded, ever.
    sa.Column("lost", sa.Integer, nullable=False, server_default="0"),
)

# One row for each key of the settings as a role last found it: a digest, since it may be a secret.
settings = sa.Table(
    "settings",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
)

# Counters that only grow (tallies.py), so that no scrape of the metrics reads every image.
tallies = sa.Table(
    "tallies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # A JSON list.
    sa.Column("labels", sa.Text, primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
)

# One row for each calling AE title: its images among those that arrival_cursor has passed.
senders = sa.Table(
    "senders",
    metadata,
    sa.Column("ae_title", sa.Text, primary_key=True),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("last_at", sa.Float, nullable=False),
)

# How many images each AE title sent in an hour (hours since 1970), for some weeks.
arrivals = sa.Table(
    "arrivals",
    metadata,
    sa.Column("ae_title", sa.Text, primary_key=True),
    sa.Column("hour", sa.Integer, primary_key=True),
    sa.Column("images", sa.Integer, nullable=False),
)

# One row: the last instance that `senders` and `arrivals` have counted.
arrival_cursor = sa.Table(
    "arrival_cursor",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("last_id", sa.Integer, nullable=False),
)

# One row for each trouble that lasts.
alarms = sa.Table(
    "alarms",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    # The only machine that can tell whether it is over; empty: any machine can.
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    # In words.
    sa.Column("words", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    # When it was first absent. Null: it was there at the last look.
    sa.Column("absent_since", sa.Float),
    # JSON: the names of the routes that are or were owed its beginning. Null: before version 9.
    sa.Column("told", sa.Text),
)

# One row for each message that is still owed to a mail server or a webhook.
alarm_messages = sa.Table(
    "alarm_messages",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("route", sa.Text, nullable=False),
    # JSON: names and texts. Never a patient's value.
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
)

# One row for each proposal of settings: its content and its outcome.
generations = sa.Table(
    "generations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # The processes of one machine read the same file.
    sa.Column("machine", sa.Text, nullable=False),
    # states.GenerationState
    sa.Column("state", sa.Text, nullable=False),
    # daemon.config.digest()
    sa.Column("digest", sa.Text, nullable=False),
    # JSON: a digest for each key, the settings without secrets, the lines that say what changed.
    sa.Column("digests", sa.Text, nullable=False),
    sa.Column("shown", sa.Text, nullable=False),
    sa.Column("changes", sa.Text, nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("asked_at", sa.Float, nullable=False),
    sa.Column("decided_at", sa.Float),
    # Why it was refused.
    sa.Column("why", sa.Text),
)

# One row for each process of a role: the settings that it works under, and its last answer.
takers = sa.Table(
    "takers",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    # The proposal that it answered last. `why` is empty if it can take it.
    sa.Column("answered", sa.Integer, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

# How many images of an AE title ended how in a week, for drift (weekly.py).
weekly = sa.Table(
    "weekly",
    metadata,
    # Weeks since Monday, 1970-01-05, 0 h UTC.
    sa.Column("week", sa.Integer, primary_key=True),
    sa.Column("ae_title", sa.Text, primary_key=True),
    # positive, not detected, or the state and the reason.
    sa.Column("outcome", sa.Text, primary_key=True),
    # The place of the probability among weekly.EDGES; -1 without one.
    sa.Column("bin", sa.Integer, primary_key=True),
    sa.Column("images", sa.Integer, nullable=False),
)

# One row: the weeks that a person took for the baseline of drift, the last one included.
baselines = sa.Table(
    "baselines",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("first_week", sa.Integer, nullable=False),
    sa.Column("last_week", sa.Integer, nullable=False),
    sa.Column("set_by", sa.Text, nullable=False),
    sa.Column("set_at", sa.Float, nullable=False),
)

# One row for each radiologist's report that the site supplied: does it report a pneumothorax?
reported = sa.Table(
    "reported",
    metadata,
    # A SOP Instance UID, or accession_digest() of an Accession Number.
    sa.Column("image", sa.Text, primary_key=True),
    sa.Column("finding", sa.Boolean, nullable=False),
    sa.Column("told_at", sa.Float, nullable=False),
)

# One row for each image that a shadow model looked at (shadow.py).
shadow_answers = sa.Table(
    "shadow_answers",
    metadata,
    # The shadow's package, as `instances.model` names one.
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("instance_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("begun_at", sa.Float, nullable=False),
    sa.Column("probability", sa.Float),
    sa.Column("positive", sa.Boolean),
    # Why there is no answer; empty with one. Null: the process ended at this image.
    sa.Column("why", sa.Text),
)

# The statements that migrate the tables from one version to the next, on both databases.
STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE instances ADD COLUMN result_time FLOAT",
        "ALTER TABLE instances ADD COLUMN remakes INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE instances ADD COLUMN removed_at FLOAT",
        "ALTER TABLE results ADD COLUMN size_bytes BIGINT",
        "ALTER TABLE deliveries ADD COLUMN commit_due_at FLOAT",
        "ALTER TABLE deliveries ADD COLUMN commit_asks INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE deliveries ADD COLUMN committed_at FLOAT",
        "CREATE TABLE commitments (transaction_uid TEXT NOT NULL PRIMARY KEY,"
        " destination TEXT NOT NULL, asked_at FLOAT NOT NULL, reported_at FLOAT)",
        "CREATE TABLE spools (identity TEXT NOT NULL PRIMARY KEY)",
        "DROP INDEX waiting",
        "DROP INDEX owed",
        "CREATE INDEX waiting ON instances (priority, id) WHERE state = 'received'",
        "CREATE INDEX instances_by_state ON instances (state, id) WHERE state != 'received'",
        "CREATE INDEX instances_by_file ON instances (spool_name)",
        "CREATE INDEX results_by_file ON results (spool_name)",
        "CREATE INDEX kept_bytes ON instances (completed_at)"
        " WHERE removed_at IS NULL AND completed_at IS NOT NULL",
        "CREATE INDEX owed ON deliveries (destination, priority, id) WHERE state = 'owed'",
        "CREATE INDEX uncommitted ON deliveries (destination, commit_due_at)"
        " WHERE state = 'stored' AND commit_due_at IS NOT NULL",
        "CREATE INDEX deliveries_by_state ON deliveries (state, id) WHERE state != 'owed'",
        "CREATE INDEX troubled ON deliveries (id) WHERE why IS NOT NULL",
    ),
    2: ("CREATE TABLE folders (path TEXT NOT NULL PRIMARY KEY)",),
    3: (
        "ALTER TABLE instances ADD COLUMN device TEXT",
        "ALTER TABLE instances ADD COLUMN accession_digest TEXT",
        "CREATE INDEX instances_by_study ON instances (study_instance_uid)"
        " WHERE study_instance_uid IS NOT NULL",
        "CREATE INDEX instances_by_accession ON instances (accession_digest)"
        " WHERE accession_digest IS NOT NULL",
        "CREATE TABLE destinations (name TEXT NOT NULL PRIMARY KEY, down_since FLOAT,"
        " last_answer TEXT NOT NULL, answered_at FLOAT NOT NULL, next_try_at FLOAT)",
        "CREATE TABLE roles (owner TEXT NOT NULL, role TEXT NOT NULL, beat_at FLOAT NOT NULL,"
        " PRIMARY KEY (owner, role))",
    ),
    4: (
        "ALTER TABLE instances ADD COLUMN calling_address TEXT",
        "CREATE TABLE audit (number INTEGER NOT NULL PRIMARY KEY, made_at FLOAT NOT NULL,"
        " event TEXT NOT NULL, facts TEXT NOT NULL)",
        "CREATE TABLE audit_state (name TEXT NOT NULL PRIMARY KEY, last_number INTEGER NOT NULL,"
        " filed INTEGER NOT NULL, owner TEXT, lease_until FLOAT NOT NULL)",
        "CREATE TABLE settings (key TEXT NOT NULL PRIMARY KEY, digest TEXT NOT NULL)",
    ),
    5: (
        "ALTER TABLE audit_state ADD COLUMN stopped_at INTEGER",
        "ALTER TABLE audit_state ADD COLUMN lost INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE instances ADD COLUMN device_model TEXT",
        "ALTER TABLE roles ADD COLUMN facts TEXT",
        "CREATE TABLE tallies (name TEXT NOT NULL, labels TEXT NOT NULL, value FLOAT NOT NULL,"
        " PRIMARY KEY (name, labels))",
        "CREATE TABLE senders (ae_title TEXT NOT NULL PRIMARY KEY, images INTEGER NOT NULL,"
        " last_at FLOAT NOT NULL)",
        "CREATE TABLE arrivals (ae_title TEXT NOT NULL, hour INTEGER NOT NULL,"
        " images INTEGER NOT NULL, PRIMARY KEY (ae_title, hour))",
        "CREATE TABLE arrival_cursor (name TEXT NOT NULL PRIMARY KEY, last_id INTEGER NOT NULL)",
        "CREATE TABLE alarms (key TEXT NOT NULL PRIMARY KEY, machine TEXT NOT NULL,"
        " kind TEXT NOT NULL, subject TEXT NOT NULL, words TEXT NOT NULL, since FLOAT NOT NULL,"
        " absent_since FLOAT)",
        "CREATE TABLE alarm_messages (id TEXT NOT NULL PRIMARY KEY, route TEXT NOT NULL,"
        " facts TEXT NOT NULL, made_at FLOAT NOT NULL, due_at FLOAT NOT NULL,"
        " failures INTEGER NOT NULL, owner TEXT, lease_until FLOAT NOT NULL)",
        "CREATE TABLE generations (number INTEGER NOT NULL PRIMARY KEY, machine TEXT NOT NULL,"
        " state TEXT NOT NULL, digest TEXT NOT NULL, digests TEXT NOT NULL, shown TEXT NOT NULL,"
        " changes TEXT NOT NULL, asked_by TEXT NOT NULL, asked_at FLOAT NOT NULL, decided_at FLOAT,"
        " why TEXT)",
        "CREATE TABLE weekly (week INTEGER NOT NULL, ae_title TEXT NOT NULL, outcome TEXT NOT NULL,"
        " bin INTEGER NOT NULL, images INTEGER NOT NULL,"
        " PRIMARY KEY (week, ae_title, outcome, bin))",
        "CREATE TABLE baselines (name TEXT NOT NULL PRIMARY KEY, first_week INTEGER NOT NULL,"
        " last_week INTEGER NOT NULL, set_by TEXT NOT NULL, set_at FLOAT NOT NULL)",
        "CREATE TABLE reported (image TEXT NOT NULL PRIMARY KEY, finding BOOLEAN NOT NULL,"
        " told_at FLOAT NOT NULL)",
        "CREATE TABLE shadow_answers (model TEXT NOT NULL, instance_id INTEGER NOT NULL,"
        " begun_at FLOAT NOT NULL, probability FLOAT, positive BOOLEAN, why TEXT,"
        " PRIMARY KEY (model, instance_id))",
        "CREATE TABLE takers (owner TEXT NOT NULL, role TEXT NOT NULL,"
        " generation INTEGER NOT NULL, answered INTEGER NOT NULL, why TEXT NOT NULL,"
        " PRIMARY KEY (owner, role))",
        "CREATE INDEX instances_by_sender ON instances (calling_ae_title, id)"
        " WHERE state != 'received'",
        "CREATE INDEX instances_by_reason ON instances (reason, id) WHERE reason IS NOT NULL",
        "CREATE INDEX positives ON instances (id) WHERE positive IS TRUE",
    ),
    6: (
        "ALTER TABLE instances ADD COLUMN steps TEXT",
        "ALTER TABLE deliveries ADD COLUMN steps TEXT",
        # The first tables of version 6 lacked it.
        "CREATE TABLE IF NOT EXISTS shadow_answers (model TEXT NOT NULL,"
        " instance_id INTEGER NOT NULL, begun_at FLOAT NOT NULL, probability FLOAT,"
        " positive BOOLEAN, why TEXT, PRIMARY KEY (model, instance_id))",
    ),
    7: (
        "ALTER TABLE deliveries ADD COLUMN owed_at FLOAT",
        "ALTER TABLE deliveries ADD COLUMN failing_since FLOAT",
        # What is owed at the migration counts as owed since its image ended.
        "UPDATE deliveries SET owed_at = (SELECT instances.completed_at FROM results"
        " JOIN instances ON instances.id = results.instance_id"
        " WHERE results.id = deliveries.result_id) WHERE state = 'owed'",
        "CREATE INDEX owed_by_age ON deliveries (destination, owed_at) WHERE state = 'owed'",
        "CREATE INDEX uncommitted_by_age ON deliveries (destination, stored_at)"
        " WHERE state = 'stored' AND commit_due_at IS NOT NULL",
        "CREATE TABLE unknown_destinations (name TEXT NOT NULL PRIMARY KEY, since FLOAT NOT NULL)",
    ),
    8: ("ALTER TABLE alarms ADD COLUMN told TEXT",),
    9: (
        "CREATE TABLE clock (name TEXT NOT NULL PRIMARY KEY, seen_at FLOAT NOT NULL,"
        " steady_since FLOAT NOT NULL, leapt_s FLOAT NOT NULL)",
    ),
}
