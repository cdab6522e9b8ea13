"""The invariant of every round: each acknowledged image is delivered once per result UID, or has
visibly failed; no file is half-written, and no image or result comes from nowhere.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import dcmread

from daemon.config import Config, FolderDestination
from daemon.ledger import Ledger
from daemon.ledger.schema import deliveries, instances, results
from daemon.spool import Spool
from tests.chaos.archive import Archive
from tests.chaos.modality import Record

_ENDED = ("analysed", "not_analysed", "failed")


@dataclass
class Account:
    """The result of checking a node at rest."""

    # Distinct images
    acknowledged: int = 0
    # State -> acknowledged images
    states: Counter[str] = field(default_factory=Counter)
    # Reason -> images that ended failed
    failed: Counter[str] = field(default_factory=Counter)
    # Results, counted for each destination
    delivered: int = 0
    # C-STOREs answered 0x0000 for an object that the archive already had: an earlier answer was
    # lost
    repeated_sends: int = 0
    # Objects that the archive answered 0x0000 and threw away
    forgotten: int = 0
    # Spool files without a row, which the sweep removed
    orphans: int = 0
    violations: list[str] = field(default_factory=list)

    def __add__(self, other: Account) -> Account:
        return Account(
            self.acknowledged + other.acknowledged,
            self.states + other.states,
            self.failed + other.failed,
            self.delivered + other.delivered,
            self.repeated_sends + other.repeated_sends,
            self.forgotten + other.forgotten,
            self.orphans + other.orphans,
            self.violations + other.violations,
        )


class Check:
    """Compares the ledger, the spool, and the records of archive and modalities. No role may run."""

    def __init__(
        self, config: Config, config_path: Path, archive: Archive | None, sent: Record
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._archive = archive
        self._sent = sent
        self._spool = Spool(config.spool)
        self.account = Account()

    def run(self) -> Account:
        ledger = Ledger.existing(self._config.ledger)
        try:
            self._read()
            self._images()
            self._answers()
            self._deliveries()
            self._files(ledger)
        finally:
            ledger.close()
        self._verify_command()
        return self.account

    def _violation(self, what: str) -> None:
        self.account.violations.append(what)

    def _read(self) -> None:
        engine = sa.create_engine(self._config.ledger)
        with engine.connect() as conn:
            self._instances: list[dict[str, Any]] = [
                dict(row) for row in conn.execute(sa.select(instances)).mappings()
            ]
            self._results: list[dict[str, Any]] = [
                dict(row) for row in conn.execute(sa.select(results)).mappings()
            ]
            self._owed: list[dict[str, Any]] = [
                dict(row) for row in conn.execute(sa.select(deliveries)).mappings()
            ]
        engine.dispose()

        self._rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self._instances:
            self._rows[row["sop_instance_uid"]].append(row)

    def _images(self) -> None:
        """Each acknowledged image has ended once; sending it again has made nothing new."""
        for uid, times in self._sent.acknowledged.items():
            rows = self._rows.get(uid, [])
            if len(rows) < times:
                self._violation(
                    f"lost: image {uid} was acknowledged {times} times, the ledger knows it {len(rows)} times"
                )

                continue

            states = Counter(row["state"] for row in rows)
            done = states["analysed"] + states["not_analysed"]
            if states["received"]:
                self._violation(f"image {uid} has not ended: {dict(states)}")
            elif done > 1:
                self._violation(
                    f"duplicated: image {uid} was analysed {done} times: {dict(states)}"
                )
            elif not done and not states["failed"]:
                self._violation(f"lost: image {uid} is only a duplicate: {dict(states)}")

            self.account.acknowledged += 1
            state = next((state for state in _ENDED if states[state]), "none")
            self.account.states[state] += 1
            if state == "failed":
                self.account.failed.update(
                    {row["reason"] for row in rows if row["state"] == "failed"}
                )
        for uid in self._rows.keys() - self._sent.sent.keys():
            self._violation(f"invented: no modality has sent image {uid}")

    def _answers(self) -> None:
        """All images of one picture have the same answer, whatever faults happened."""
        answers: dict[int, set[tuple[Any, ...]]] = defaultdict(set)

        kinds: dict[int, list[str]] = defaultdict(list)
        for result in self._results:
            kinds[result["instance_id"]].append(result["kind"])

        for row in self._instances:
            if row["state"] != "analysed":
                continue
            # The last digits of a probability depend on the other images of the batch.
            answer = (
                row["positive"],
                round(row["probability"], 3),
                tuple(sorted(kinds[row["id"]])),
            )
            answers[self._sent.template[row["sop_instance_uid"]]].add(answer)

        for template, found in answers.items():
            if len(found) > 1:
                self._violation(
                    f"wrong: picture {template} has more than one answer: {sorted(found)}"
                )

    def _deliveries(self) -> None:
        """Every owed result is at its destination once, with the same bytes."""
        by_id = {row["id"]: row for row in self._results}
        image = {row["id"]: row for row in self._instances}

        owed: Counter[tuple[int, str]] = Counter(
            (row["result_id"], row["destination"]) for row in self._owed
        )

        for result in self._results:
            for name, kinds in self._config.owed().items():
                times = owed[result["id"], name]
                if times != (result["kind"] in kinds):
                    self._violation(
                        f"result {result['sop_instance_uid']} is owed {times} times to {name}"
                    )

        per_image: Counter[tuple[str, str, str]] = Counter()
        for result in self._results:
            source = image[result["instance_id"]]
            per_image[source["sop_instance_uid"], result["kind"], source["state"]] += 1
        for (uid, kind, state), number in per_image.items():
            if number > 1 and state in ("analysed", "not_analysed"):
                self._violation(f"duplicated: image {uid} has {number} results {kind}")

        held = self._archive.held() if self._archive else {}
        for row in self._owed:
            result = by_id[row["result_id"]]
            uid = result["sop_instance_uid"]
            # A refusal is visible.
            if row["state"] == "refused":
                continue
            if row["state"] not in ("stored", "committed"):
                self._violation(
                    f"result {uid} has not ended at {row['destination']}: {row['state']}, {row['why']}"
                )
                continue

            self.account.delivered += 1
            destination = next(
                each for each in self._config.destinations if each.name == row["destination"]
            )
            if isinstance(destination, FolderDestination):
                self._in_folder(destination.folder, result)
            elif uid not in held:
                self._violation(
                    f"lost: result {uid} is {row['state']}, but the archive does not hold it"
                )
            elif getattr(destination, "commitment", False) and row["state"] != "committed":
                self._violation(f"result {uid} is stored, but the archive has not committed to it")

        if self._archive:
            self._in_archive(held)

    def _in_archive(self, held: dict[str, str]) -> None:
        assert self._archive is not None
        ours = {row["sop_instance_uid"]: row for row in self._results}
        digests: dict[str, set[str]] = defaultdict(set)
        kept: Counter[str] = Counter()
        for answer in self._archive.answered():
            digests[answer.uid].add(answer.digest)
            kept[answer.uid] += answer.kept
            self.account.forgotten += not answer.kept
        self.account.repeated_sends += sum(number - 1 for number in kept.values() if number > 1)

        for uid, found in digests.items():
            if len(found) > 1:
                self._violation(f"result {uid} was sent with {len(found)} different contents")
            if uid not in ours:
                self._violation(
                    f"invented: the archive was sent {uid}, which the ledger does not know"
                )

        for uid, digest in held.items():
            path = self._spool.path(ours[uid]["spool_name"]) if uid in ours else None
            if path is not None and path.exists() and _data_set_digest(path.read_bytes()) != digest:
                self._violation(f"half-written: result {uid} differs between spool and archive")

    def _in_folder(self, folder: Path, result: dict[str, Any]) -> None:
        path = folder / f"{result['sop_instance_uid']}.dcm"
        if not path.exists():
            self._violation(f"lost: result {path.stem} is not in its folder")
            return
        source = self._spool.path(result["spool_name"])
        if source.exists() and path.read_bytes() != source.read_bytes():
            self._violation(f"half-written: {path.name} differs between spool and folder")
        dcmread(path)

    def _files(self, ledger: Ledger) -> None:
        """Files with final names are complete; the sweep removes the files that nothing needs, and
        no others.
        """
        for row in self._instances:
            path = self._spool.path(row["spool_name"])
            if (
                row["state"] != "failed"
                and path.exists()
                and path.stat().st_size != row["size_bytes"]
            ):
                self._violation(
                    f"half-written: image {row['sop_instance_uid']} has {path.stat().st_size} bytes"
                )

        known = {row["sop_instance_uid"] for row in self._results}
        for folder in [
            each.folder for each in self._config.destinations if isinstance(each, FolderDestination)
        ]:
            for path in folder.glob("[!.]*"):
                if path.stem not in known:
                    self._violation(f"invented: {path.name} in a folder destination")

        needed, damaged = self._counted_on()
        for name in sorted(needed - set(self._spool.names())):
            self._violation(f"lost: spool file {name} is gone, but a row needs it")

        self.account.orphans += self._spool.sweep(ledger.inspect.known_spool_names, age_s=-5.0)
        after = set(self._spool.names())
        for name in sorted(after - needed - damaged):
            self._violation(f"the sweep left {name}, which no row needs")
        for name in sorted(needed - after):
            self._violation(f"lost: the sweep removed {name}")

        expected = after | {"spool.id"}
        left = [
            path
            for path in self._config.spool.rglob("*")
            if path.is_file() and path.name not in expected
        ]
        for path in left:
            self._violation(f"left in the spool: {path.name}")

    def _counted_on(self) -> tuple[set[str], set[str]]:
        """The spool files of images that retention has not removed: those that must exist, and
        those that are known to be damaged.
        """
        kept = {row["id"]: row for row in self._instances if row["removed_at"] is None}
        damaged = {row["spool_name"] for row in kept.values() if row["reason"] == "bytes_missing"}
        files = {
            row["spool_name"]
            for row in (*kept.values(), *self._results)
            if row.get("instance_id", row["id"]) in kept
        }
        return files - damaged, damaged

    def _verify_command(self) -> None:
        """`pleura verify` finds nothing but images that have already failed because their bytes
        were lost.
        """
        answer = subprocess.run(
            [sys.executable, "-m", "daemon.cli", "verify", "-c", str(self._config_path)],
            capture_output=True,
            text=True,
        )
        told = {
            row["sop_instance_uid"] for row in self._instances if row["reason"] == "bytes_missing"
        }
        faults = [
            line for line in answer.stdout.splitlines() if not any(uid in line for uid in told)
        ]
        # The last line of the output counts the faults.
        if answer.returncode and (not told or len(faults) > 1):
            self._violation(f"pleura verify: {' '.join(faults)} {answer.stderr}")


def _data_set_digest(part10: bytes) -> str:
    """A digest of the bytes that go over the wire: those after the file meta information."""
    # The value of (0002,0000) gives its length; preamble, DICM and that element's header come
    # first.
    length = int.from_bytes(part10[140:144], "little")
    return hashlib.sha256(part10[144 + length :]).hexdigest()
