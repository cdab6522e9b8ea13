"""Is the node alive, and can it do its job: the content of /healthz and /readyz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from daemon.config import Config
from daemon.ledger import Inspection, LedgerError, Snapshot, describe
from daemon.ledger.processes import SILENT_AFTER_S
from daemon.metrics.host import UNSEEN_SPOOL, free_bytes

# The roles that a node needs to do its job.
ROLES = ("receive", "analyse", "deliver")

_MB = 1024 * 1024


@dataclass(frozen=True)
class Health:
    """`is_well` answers 200, else 503. Each check says "ok" or its trouble in words."""

    is_well: bool
    checks: Mapping[str, str]


def health(inspect: Inspection) -> Health:
    """Whether this process lives and sees the ledger."""
    try:
        inspect.now()
        inspect.spool_identity()
    except (SQLAlchemyError, LedgerError) as error:
        return Health(False, {"ledger": describe(error)})
    return Health(True, {"ledger": "ok"})


def ready(config: Config, inspect: Inspection) -> Health:
    """Whether the node can do its job: it receives, analyses and has room on its disk.

    A role sends heartbeats only once it is ready: receive listens, and analyse has replayed the
    model's golden inputs.
    """
    alive = health(inspect)
    if not alive.is_well:
        return alive

    found = inspect.figures()
    checks = {role: _of_role(found, role) for role in ROLES[:2]}
    checks["disk"] = _of_disk(config, found)
    is_well = all(words == "ok" for words in checks.values())
    return Health(is_well, {**alive.checks, **checks})


def age_of_sign(found: Snapshot, role: str) -> float | None:
    """Seconds since the last heartbeat of any process of a role; None: there was none."""
    signs = [found.now - process.beat_at for process in found.roles if process.role == role]
    return max(0.0, min(signs)) if signs else None


def _of_role(found: Snapshot, role: str) -> str:
    age_s = age_of_sign(found, role)
    if age_s is None:
        return "no process is ready"
    return "ok" if age_s <= SILENT_AFTER_S else f"no heartbeat for {age_s:.0f} s"


def _of_disk(config: Config, found: Snapshot) -> str:
    free = free_bytes(config.spool, found.spool)
    if free is None:
        return UNSEEN_SPOOL
    reserve = config.spool_reserve_mb * _MB
    if free < reserve:
        return f"{free // _MB} MB free beside the spool, {config.spool_reserve_mb} MB wanted"
    return "ok"
