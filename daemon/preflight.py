"""`python -m daemon.preflight FILE`: what `serve` must know of the settings before it starts roles.

A separate process, so that the supervisor does not keep the settings' and the ledger's libraries
(30 MB) for the months that it runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sqlalchemy.exc import DatabaseError, OperationalError

from daemon import config as settings
from daemon import log, service
from daemon.config import Config
from daemon.exits import EXIT_CANNOT_START, EXIT_DONE, CannotStartError
from daemon.ledger import describe


def main(file: Path) -> int:
    """Print as JSON the format of the log, and the roles to run: name -> whether the node needs it.

    Returns 2 if the settings, the ledger or the spool are wrong: one clear error instead of one
    from each role.
    """
    log.start()
    try:
        config = settings.load(file)
        log.use(config.log_format)
        check_stores(config)
    except CannotStartError as error:
        # Its log lines come first.
        log.flush()
        print(error, file=sys.stderr)  # noqa: T201 - as every command does
        return EXIT_CANNOT_START

    log.flush()
    roles = {role: service.is_needed(role) for role in service.roles_of(config)}
    found = {"log_format": config.log_format, "roles": roles}
    print(json.dumps(found))  # noqa: T201 - the supervisor reads it
    return EXIT_DONE


def check_stores(config: Config) -> None:
    """Open the ledger and the spool once. Raises CannotStartError if only a person can help."""
    try:
        ledger, _ = service.open_stores(config)
    except (OperationalError, OSError):
        # The roles themselves wait for an unreachable database server or disk.
        return
    except DatabaseError as error:
        # The database answered: rights are missing, or the file is damaged.
        raise CannotStartError(f"ledger: {describe(error)}") from error
    ledger.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
