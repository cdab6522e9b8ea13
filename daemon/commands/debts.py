"""The debts that would be lost with the spool: the Debian package asks before its removal.

python -m daemon.commands.debts -c FILE      # a line for each debt; exit status 1 with debts
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from daemon import config as settings
from daemon.commands.status import summary
from daemon.config import Config, ConfigError, FolderDestination
from daemon.exits import EXIT_DONE, EXIT_FAILED
from daemon.ledger import Inspection, LedgerError, describe
from daemon.ownership import ledger_file

_IMAGES = {"received": "wait to be analysed", "failed": "failed, and may be tried again"}
_DELIVERIES = {"owed": "are owed", "refused": "were refused, and may be tried again"}


def debts(config: Config, state: Path) -> list[str]:
    """Why the folder `state` must stay, a line each; empty where nothing in it is needed.

    What cannot be asked counts as a debt: an unreadable ledger, or another node's database.
    """
    ledger = ledger_file(config)
    if ledger is None:
        return ["ledger: a database that other machines may use counts on this spool"]
    if not ledger.exists():
        return [f"spool {config.spool}: without its ledger"] if _has_files(config.spool) else []

    try:
        with closing(Inspection.open(config.ledger)) as inspect:
            found = summary(inspect, [], config.spool)
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
    if found["quarantined"]:
        lines.append(f"{len(found['quarantined'])} files in quarantine wait for a person")
    if found["spool_trouble"]:
        lines.append(f"spool: {found['spool_trouble']}")

    for place, path in (("ledger", ledger), ("spool", config.spool)):
        if not path.is_relative_to(state):
            lines.append(f"{place}: {path} lies outside {state}")
    return lines + _files_of_others(config, state)


def _files_of_others(config: Config, state: Path) -> list[str]:
    """Folders inside `state` whose files are not the node's to remove."""
    folders = {
        f"destination {each.name}": each.folder
        for each in config.destinations
        if isinstance(each, FolderDestination)
    }
    if config.inbox is not None:
        folders["inbox"] = config.inbox
    return [
        f"{place}: {folder} holds files"
        for place, folder in folders.items()
        if folder.is_relative_to(state) and _has_files(folder)
    ]


def _has_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


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
