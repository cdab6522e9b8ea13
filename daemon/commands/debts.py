"""The debts that would be lost with the spool: the Debian package asks before its removal.

python -m daemon.commands.debts -c FILE      # a line for each debt; exit status 1 with debts
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from daemon import config as settings
from daemon.commands.status import summary
from daemon.config import Config, ConfigError
from daemon.exits import EXIT_DONE, EXIT_FAILED
from daemon.ledger import Inspection, LedgerError, describe
from daemon.ownership import ledger_file

_IMAGES = {"received": "wait to be analysed", "failed": "failed, and may be tried again"}
_DELIVERIES = {"owed": "are owed", "refused": "were refused, and may be tried again"}

# What SQLite and an upgrade leave beside the ledger's file (database.py, copies.py).
_OF_THE_LEDGER = re.compile(r"|-wal|-shm|-journal|-bell|\.version-\d+|\.part")
# What libraries keep in the home of the user that runs the node.
_CACHES = {".cache", ".nv", ".triton"}


def debts(config: Config, state: Path) -> list[str]:
    """Why the folder `state` must stay, a line each; empty where nothing in it is needed.

    A ledger that cannot be read, or another node's database, counts as a debt.
    """
    ledger = ledger_file(config)
    if ledger is None:
        return ["ledger: a database that other machines may use refers to this spool"]

    if ledger.exists():
        lines = _owed(config)
    elif _has_files(config.spool):
        lines = [f"spool {config.spool}: without its ledger"]
    else:
        lines = []

    for place, path in (("ledger", ledger), ("spool", config.spool)):
        if not path.is_relative_to(state):
            lines.append(f"{place}: {path} lies outside {state}")
    lines += [f"{path} is not the node's to remove" for path in _others(config, ledger, state)]
    return lines


def _owed(config: Config) -> list[str]:
    """What the ledger says of images and deliveries."""
    try:
        with closing(Inspection.open(config.ledger)) as inspect:
            found = summary(inspect, [], config.spool)
            uncommitted = inspect.figures().uncommitted
    except LedgerError as error:
        return [f"ledger: {error}"]
    except SQLAlchemyError as error:
        return [f"ledger: {describe(error)}"]

    lines = [f"{found['instances'].get(key, 0)} images {words}" for key, words in _IMAGES.items()]
    lines += [
        f"{found['deliveries'].get(key, 0)} deliveries {words}"
        for key, words in _DELIVERIES.items()
    ]
    lines = [line for line in lines if not line.startswith("0 ")]

    lines += [
        f"destination {each.name} has not committed to all that it stored"
        for each in config.committing()
        if each.name in uncommitted
    ]
    if found["quarantined"]:
        lines.append(f"{len(found['quarantined'])} files in quarantine wait for a person")
    if found["spool_trouble"]:
        lines.append(f"spool: {found['spool_trouble']}")
    return lines


def _others(config: Config, ledger: Path, folder: Path) -> Iterator[Path]:
    """What lies in `folder` beside spool and ledger, and holds files: a model package, an inbox, a
    folder destination, a backup.
    """
    own = (config.spool, ledger)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path == config.spool or path.is_symlink() or path.name in _CACHES:
            continue
        if path.parent == ledger.parent and _is_of(ledger, path):
            continue

        if any(each.is_relative_to(path) for each in own):
            yield from _others(config, ledger, path)
        elif path.is_file() or _has_files(path):
            yield path


def _is_of(ledger: Path, path: Path) -> bool:
    rest = path.name.removeprefix(ledger.name)
    return path.name.startswith(ledger.name) and _OF_THE_LEDGER.fullmatch(rest) is not None


def _has_files(folder: Path) -> bool:
    """Whether files lie in it, or somewhere below; true where this user may not look."""
    unread: list[OSError] = []
    has_any = any(names for _, _, names in os.walk(folder, onerror=unread.append))
    return has_any or any(not isinstance(error, FileNotFoundError) for error in unread)


def main() -> int:
    """Print the debts of one node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/var/lib/pleura"))
    options = parser.parse_args()

    try:
        lines = debts(settings.load(options.config), options.state)
    except ConfigError as error:
        lines = [str(error)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return EXIT_FAILED if lines else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
