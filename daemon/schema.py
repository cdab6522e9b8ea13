"""The ledger's tables. Rows outlive the bytes they tell of; times are seconds since 1970 on the ledger's clock."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 1

metadata = sa.MetaData()

schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

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
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Float, nullable=False),
    # received, analysed, not_analysed, failed, duplicate
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("content_digest", sa.Text),
    sa.Column("duplicate_of", sa.Integer),
    sa.Column("probability", sa.Float),
    sa.Column("positive", sa.Boolean),
    sa.Column("model", sa.Text),
    sa.Column("completed_at", sa.Float),
    # the lease
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("unfinished", sa.Integer, nullable=False),  # attempts begun and not ended
    sa.Column("unfinished_alone", sa.Integer, nullable=False),  # of these, the ones with no neighbour to blame
)
sa.Index("waiting", instances.c.state, instances.c.priority, instances.c.id)
sa.Index("same_image", instances.c.sop_instance_uid, instances.c.content_digest)

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
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("result_id", sa.ForeignKey("results.id"), nullable=False, index=True),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # owed, stored, committed, refused
    sa.Column("status", sa.Integer),  # the last DIMSE status
    sa.Column("why", sa.Text),
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),  # answers with a failure status; outages do not count
    sa.Column("stored_at", sa.Float),
)
sa.Index("owed", deliveries.c.destination, deliveries.c.state, deliveries.c.priority, deliveries.c.id)
