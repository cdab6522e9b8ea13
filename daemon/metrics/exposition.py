"""The Prometheus text of /metrics, from one snapshot of the ledger and a few files.

Every value is read at the scrape, so any process can answer, and a restart loses no counter. The
number of series is bounded: tallies.py and senders.py bound the names that peers choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from daemon.config import Config
from daemon.installed import version
from daemon.ledger import Inspection, RoleProcess, Snapshot, Tally
from daemon.ledger.processes import SILENT_AFTER_S
from daemon.ledger.tallies import BOUNDS_S, Counter, Stage, bounded
from daemon.metrics.health import ROLES, age_of_sign
from daemon.metrics.host import certificates, free_bytes

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_MB = 1024 * 1024
_SOURCE = ("ae_title", "device_model")


def exposition(config: Config, inspect: Inspection) -> bytes:
    """The text of /metrics. Raises the ledger's errors if it is unreachable."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(config, inspect.figures()))
    return generate_latest(registry)


class _Figures(Collector):
    """One snapshot as metric families, in the order of an image's life."""

    def __init__(self, config: Config, found: Snapshot) -> None:
        self._config = config
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._images()
        yield from self._queue()
        yield from self._stages()
        yield from self._deliveries()
        yield from self._destinations()
        yield from self._roles()
        yield from self._models()
        yield from self._machine()
        yield self._troubles()

    def _troubles(self) -> Metric:
        family = GaugeMetricFamily(
            "pleura_trouble",
            "1: a trouble lasts, of the kinds that docs/monitor.md lists.",
            labels=["kind", "subject"],
        )
        for kind, subject in sorted({(kind, bounded(text)) for kind, text in self._found.troubles}):
            family.add_metric([kind, subject], 1)
        return family

    def _images(self) -> Iterator[Metric]:
        received = CounterMetricFamily(
            "pleura_images_received", "Images accepted, by calling AE title.", labels=["ae_title"]
        )
        last = GaugeMetricFamily(
            "pleura_last_image_timestamp_seconds",
            "When the newest image of this calling AE title was received, in seconds since 1970.",
            labels=["ae_title"],
        )
        for title, sender in sorted(self._found.senders.items()):
            received.add_metric([title], sender.images)
            last.add_metric([title], sender.last_at)
        yield received
        yield last

        ended = "Images that ended, by calling AE title, X-ray system and end state."
        yield self._counter("pleura_images_ended", ended, Counter.IMAGES, (*_SOURCE, "state"))
        positive = "Images with a positive answer, by calling AE title and X-ray system."
        yield self._counter("pleura_images_positive", positive, Counter.POSITIVES, _SOURCE)
        reasons = "Images that ended not analysed or failed, by reason (docs/monitor.md)."
        yield self._counter("pleura_image_reasons", reasons, Counter.REASONS, ("state", "reason"))

    def _queue(self) -> Iterator[Metric]:
        found = self._found
        yield GaugeMetricFamily(
            "pleura_queue_images", "Images that wait or are in work.", value=found.waiting
        )
        yield GaugeMetricFamily(
            "pleura_queue_oldest_seconds",
            "Age of the oldest image that waits or is in work; 0 without one.",
            value=_age(found.now, found.waiting_since),
        )

        yield GaugeMetricFamily(
            "pleura_images_failed",
            "Images that ended failed and wait for `pleura retry`.",
            value=found.failed,
        )
        yield GaugeMetricFamily(
            "pleura_audit_waiting",
            "Messages that the audit trail still owes.",
            value=found.audit_waiting,
        )

    def _stages(self) -> Iterator[Metric]:
        stages = HistogramMetricFamily(
            "pleura_stage_seconds",
            "Duration of a stage. waiting: receipt to claim; analysis: claim to answer; delivery: "
            "answer to stored at the destination; whole: receipt to stored.",
            labels=["stage", "destination"],
        )
        counted = {tally.labels: tally.value for tally in self._named(Counter.STAGE_BUCKETS)}
        sums = {tally.labels: tally.value for tally in self._named(Counter.STAGE_SECONDS)}
        before: dict[tuple[str, ...], float] = {(stage.value, ""): 0.0 for stage in _INNER_STAGES}
        for labels, seconds in {**before, **sums}.items():
            stages.add_metric(labels, _cumulative(counted, labels), sum_value=seconds)
        yield stages

    def _deliveries(self) -> Iterator[Metric]:
        found = self._found
        ended = "Results that a destination stored, committed to or refused."
        labels = ("destination", "outcome")
        yield self._counter("pleura_deliveries", ended, Counter.DELIVERIES, labels)

        owed = GaugeMetricFamily(
            "pleura_deliveries_owed", "Results still owed.", labels=["destination"]
        )
        oldest = GaugeMetricFamily(
            "pleura_deliveries_oldest_seconds",
            "Age of the oldest result still owed; 0 without one.",
            labels=["destination"],
        )
        refused = GaugeMetricFamily(
            "pleura_deliveries_refused",
            "Refused results that wait for `pleura retry`.",
            labels=["destination"],
        )
        for name in sorted({*self._configured(), *found.owed, *found.refused}):
            debt = found.owed.get(name)
            owed.add_metric([bounded(name)], debt.results if debt else 0)
            oldest.add_metric([bounded(name)], _age(found.now, debt.since if debt else None))
            refused.add_metric([bounded(name)], found.refused.get(name, 0))
        yield owed
        yield oldest
        yield refused

        uncommitted = GaugeMetricFamily(
            "pleura_commitment_oldest_seconds",
            "Age of the oldest result that a destination with `commitment` stored and has not "
            "committed to; 0 without one.",
            labels=["destination"],
        )
        for destination in self._config.committing():
            first = found.uncommitted.get(destination.name)
            age_s = _age(found.now, first.since if first else None)
            uncommitted.add_metric([destination.name], age_s)
        yield uncommitted

    def _destinations(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "pleura_destination_up",
            "1: the destination takes objects; 0: its circuit is open.",
            labels=["destination"],
        )
        down = GaugeMetricFamily(
            "pleura_destination_down_seconds",
            "For how long the circuit has been open; 0: it is closed.",
            labels=["destination"],
        )

        for name in self._configured():
            circuit = self._found.circuits.get(name)
            down_since = circuit.down_since if circuit else None
            up.add_metric([name], 1 if down_since is None else 0)
            down.add_metric([name], _age(self._found.now, down_since))
        yield up
        yield down

    def _roles(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "pleura_role_up",
            "1: a process of the role is ready and sent a heartbeat in the last minute.",
            labels=["role"],
        )
        age = GaugeMetricFamily(
            "pleura_role_heartbeat_seconds",
            "Seconds since the newest heartbeat of the role; absent: there was none.",
            labels=["role"],
        )

        for role in ROLES:
            age_s = age_of_sign(self._found, role)
            up.add_metric([role], 1 if age_s is not None and age_s <= SILENT_AFTER_S else 0)
            if age_s is not None:
                age.add_metric([role], age_s)
        yield up
        yield age
        yield self._facts("pleura_process_memory_bytes", "Resident memory.", "memory_bytes")

    def _models(self) -> Iterator[Metric]:
        models = InfoMetricFamily("pleura_model", "The model package that answers.")
        labels = ("model", "version", "digest", "device")
        label_values = {
            tuple(bounded(str(process.facts[label])) for label in labels)
            for process in self._alive()
            if all(label in process.facts for label in labels)
        }
        for values in sorted(label_values):
            models.add_metric([], dict(zip(labels, values, strict=True)))
        yield models

        words = (
            "Images that a shadow model looked at, by its digest: agreed and disagreed were "
            "compared with the model's answer, failed got none."
        )
        of_shadow = Counter.SHADOW_IMAGES
        yield self._counter("pleura_shadow_images", words, of_shadow, ("digest", "outcome"))

        used, total = "Memory of the GPU in use.", "Memory of the GPU."
        yield self._facts("pleura_gpu_memory_used_bytes", used, "gpu_used_bytes")
        yield self._facts("pleura_gpu_memory_total_bytes", total, "gpu_total_bytes")
        software = InfoMetricFamily("pleura", "The software of the process that answers.")
        software.add_metric([], {"version": version()})
        yield software

    def _machine(self) -> Iterator[Metric]:
        free = GaugeMetricFamily(
            "pleura_spool_free_bytes", "Room on the spool's disk; absent: it cannot be seen."
        )
        room = free_bytes(self._config.spool, self._found.spool)
        if room is not None:
            free.add_metric([], room)
        yield free
        stuck = "Files in the inbox that cannot be taken or removed, after several tries."
        yield self._facts("pleura_inbox_stuck_files", stuck, "inbox_stuck_files")
        yield GaugeMetricFamily(
            "pleura_spool_reserve_bytes",
            "With less room than this, images are refused with 0xA700.",
            value=self._config.spool_reserve_mb * _MB,
        )

        left = GaugeMetricFamily(
            "pleura_certificate_left_seconds",
            "Seconds until a certificate of the settings ends.",
            labels=["key"],
        )
        for key, ends_at in certificates(self._config):
            left.add_metric([key], ends_at - self._found.now)
        yield left

    # -- parts ----------------------------------------------------------------------------------

    def _counter(
        self, name: str, words: str, counter: Counter, labels: Sequence[str]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, words, labels=labels)
        for tally in self._named(counter):
            family.add_metric(tally.labels, tally.value)
        return family

    def _named(self, counter: Counter) -> Iterator[Tally]:
        return (tally for tally in self._found.tallies if tally.name == counter)

    def _configured(self) -> list[str]:
        return [destination.name for destination in self._config.destinations]

    def _alive(self) -> Iterator[RoleProcess]:
        oldest = self._found.now - SILENT_AFTER_S
        return (process for process in self._found.roles if process.beat_at >= oldest)

    def _facts(self, name: str, words: str, fact: str) -> GaugeMetricFamily:
        """A number that each process reports with its heartbeat."""
        family = GaugeMetricFamily(name, words, labels=["role", "process"])
        for process in self._alive():
            value = process.facts.get(fact)
            if isinstance(value, int | float):
                family.add_metric([process.role, bounded(process.owner)], value)
        return family


# The stages of every image are there even before the first image.
_INNER_STAGES = (Stage.WAITING, Stage.ANALYSIS)


def _age(now: float, since: float | None) -> float:
    return 0.0 if since is None else max(0.0, now - since)


def _cumulative(
    counted: dict[tuple[str, ...], float], labels: tuple[str, ...]
) -> list[tuple[str, float]]:
    """The buckets of one histogram, each with everything below its bound."""
    buckets = []
    total = 0.0
    for bound in [*(f"{bound}" for bound in BOUNDS_S), "+Inf"]:
        total += counted.get((*labels, bound), 0.0)
        buckets.append((bound, total))
    return buckets
