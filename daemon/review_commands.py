"""The commands that review a node's work: drift, and the monthly report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import opening
from daemon.exits import EXIT_DONE, EXIT_FAILED, CannotStartError

if TYPE_CHECKING:
    from daemon.drift import Reports

# The most lines about unusable files of one folder.
_MOST_LINES = 20


def drift(options: argparse.Namespace) -> int:
    """`pleura drift`: 1 where a figure alarms."""
    if options.action == "baseline":
        return _set_baseline(options)
    if options.action == "reports":
        return _take_reports(options)

    from daemon import config
    from daemon.commands import drift as command

    inspect = opening.inspection(config.load(options.config))
    found = command.look(inspect, options.weeks)
    print(json.dumps(command.summary(found)) if options.json else "\n".join(command.lines(found)))
    return EXIT_FAILED if found.drift.alarms else EXIT_DONE


def _set_baseline(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.drift import monday_of, weeks_between
    from daemon.invoker import user

    first, last = weeks_between(options.first, options.last)
    if last < first:
        raise CannotStartError("drift baseline: --to lies before --from")

    ledger = opening.ledger(config.load(options.config))
    images = sum(count.images for count in ledger.inspect.drift.counts(first, last))
    if not images:
        raise CannotStartError("drift baseline: no image ended in these weeks")

    what = f"baseline of drift: the weeks of {monday_of(first)} to {monday_of(last)}"
    ledger.drift.set_baseline(first, last, user())
    ledger.record_audit("command", {"by": user(), "what": what})
    print(f"{what}, {images} images")
    return EXIT_DONE


def _take_reports(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.drift import agreement, move_away
    from daemon.invoker import user

    if options.move_to is not None:
        _require_other_folder(options.file, options.move_to)

    ledger = opening.ledger(config.load(options.config))
    found = _reports(options.file, ledger.inspect.spool_identity() or "")
    number = len(found.findings)
    ledger.drift.tell_reports(found.findings)
    ledger.record_audit("command", {"by": user(), "what": f"took {number} reports"})
    agreed = agreement(ledger.inspect)
    with_images = agreed.reports if agreed else 0
    print(f"{number} reports taken; {with_images} reports in all have an analysed image")

    wrong = list(found.unusable.values())[:_MOST_LINES]
    if found.left:
        wrong.append(f"{found.left} more files are left; --move-to FOLDER lets the next call come")
    if options.move_to is not None:
        wrong += move_away(found, options.move_to)
    for line in wrong:
        print(f"{options.file}: {line}", file=sys.stderr)
    return EXIT_FAILED if wrong else EXIT_DONE


def _reports(path: Path, identity: str) -> Reports:
    from daemon.drift import Reports, ReportsError, read_messages, read_reports

    try:
        if path.is_dir():
            return read_messages(path, identity)
        return Reports(read_reports(path.read_text(encoding="utf-8-sig"), identity))
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStartError(f"{path}: cannot be read ({error})") from error
    except ReportsError as error:
        raise CannotStartError(f"{path}: {error}") from error


def _require_other_folder(folder: Path, move_to: Path) -> None:
    """Raise before reading if the messages could not be moved there."""
    from daemon.drift import UNUSABLE

    if not folder.is_dir():
        raise CannotStartError(f"--move-to: found beside {folder}; a folder of *.hl7 wanted")
    try:
        if move_to.samefile(folder):
            raise CannotStartError(f"--move-to: {move_to} found; another folder wanted")
        (move_to / UNUSABLE).mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise CannotStartError(
            f"--move-to: {move_to}: {error.strerror}; a folder that can be written wanted"
        ) from error


def report(options: argparse.Namespace) -> int:
    """`pleura report`."""
    from datetime import datetime

    from daemon import config
    from daemon.report import page, read

    last = options.until or datetime.now().astimezone().date()
    if last < options.since:
        raise CannotStartError("report: --until lies before --since")

    settings = config.load(options.config)
    found = read(opening.inspection(settings), settings.ae_title, options.since, last)
    try:
        options.out.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise CannotStartError(f"{options.out}: cannot be written ({error.strerror})") from error
    print(f"{options.out}: {sum(day.images for day in found.days)} images")
    return EXIT_DONE
