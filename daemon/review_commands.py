"""The commands that look back at a node's work: drift, and the monthly report."""

from __future__ import annotations

import argparse
import json
import sys

from daemon import opening
from daemon.exits import EXIT_DONE, EXIT_FAILED, CannotStartError

# Lines about files of one folder that cannot be used.
_MOST_LINES = 20


def drift(options: argparse.Namespace) -> int:
    """`pleura drift`: 1 where a figure alarms."""
    if options.action == "baseline":
        return _set_baseline(options)
    if options.action == "reports":
        return _take_reports(options)

    from daemon.commands import drift as command

    inspect = opening.inspection(options)
    found = command.look(inspect, options.weeks)
    print(json.dumps(command.summary(found)) if options.json else "\n".join(command.lines(found)))
    return EXIT_FAILED if found.drift.alarms else EXIT_DONE


def _set_baseline(options: argparse.Namespace) -> int:
    from daemon.drift import monday_of, weeks_between
    from daemon.invoker import user

    first, last = weeks_between(options.first, options.last)
    if last < first:
        raise CannotStartError("drift baseline: --to lies before --from")

    ledger = opening.ledger(options)
    images = sum(count.images for count in ledger.inspect.drift.counts(first, last))
    if not images:
        raise CannotStartError("drift baseline: no image ended in these weeks")

    what = f"baseline of drift: the weeks of {monday_of(first)} to {monday_of(last)}"
    ledger.drift.set_baseline(first, last, user())
    ledger.record_audit("command", {"by": user(), "what": what})
    print(f"{what}, {images} images")
    return EXIT_DONE


def _take_reports(options: argparse.Namespace) -> int:
    from daemon.drift import MessageError, ReportsError, agreement, read_messages, read_reports
    from daemon.invoker import user

    ledger = opening.ledger(options)
    identity = ledger.inspect.spool_identity() or ""
    wrong: list[str] = []
    try:
        if options.file.is_dir():
            findings, wrong = read_messages(options.file, identity)
        else:
            findings = read_reports(options.file.read_text(encoding="utf-8-sig"), identity)
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStartError(f"{options.file}: cannot be read ({error})") from error
    except (ReportsError, MessageError) as error:
        raise CannotStartError(f"{options.file}: {error}") from error

    ledger.drift.tell_reports(findings)
    ledger.record_audit("command", {"by": user(), "what": f"took {len(findings)} reports"})
    agreed = agreement(ledger.inspect)
    with_images = agreed.reports if agreed else 0
    print(f"{len(findings)} reports taken; {with_images} reports in all have an analysed image")
    for line in wrong[:_MOST_LINES]:
        print(f"{options.file}: {line}", file=sys.stderr)
    return EXIT_FAILED if wrong else EXIT_DONE


def report(options: argparse.Namespace) -> int:
    """`pleura report`."""
    from datetime import datetime

    from daemon import config
    from daemon.report import page, read

    last = options.until or datetime.now().astimezone().date()
    if last < options.since:
        raise CannotStartError("report: --until lies before --since")

    settings = config.load(options.config)
    found = read(opening.inspection(options), settings.ae_title, options.since, last)
    try:
        options.out.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise CannotStartError(f"{options.out}: cannot be written ({error.strerror})") from error
    print(f"{options.out}: {sum(day.images for day in found.days)} images")
    return EXIT_DONE
