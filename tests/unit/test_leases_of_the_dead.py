"""Leases of a dead process are released at once for its successor on the same host; leases of live
processes stay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from daemon.ledger import Arrival, Ledger
from daemon.service import release_dead_leases

CLAIM = "import sys; from daemon.ledger import Ledger, owner_name; Ledger(sys.argv[1]).claim_images(owner_name(), 1)"


def test_only_leases_of_dead_processes_are_released(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url)
    ledger.receive(
        [Arrival(f"file-{n}", "1.2", f"1.2.{n}", "", "", "dimse", 1, 1) for n in range(3)]
    )

    # This process ends while it holds a lease.
    subprocess.run([sys.executable, "-c", CLAIM, url], check=True)
    (elsewhere,) = ledger.claim_images("another-host:1", 1)
    (mine,) = ledger.claim_images(
        next(iter(ledger.inspect.lease_owners() - {"another-host:1"})).rpartition(":")[0] + ":1", 1
    )
    assert ledger.claim_images("me", 9) == []

    release_dead_leases(ledger)
    (free,) = ledger.claim_images("me", 9)
    assert free.id not in (elsewhere.id, mine.id)
    assert free.attempt == 2
    ledger.close()
