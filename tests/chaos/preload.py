"""What the process that all victims are forked from has loaded: everything, and no thread running."""

from importlib import import_module

for _name in (
    "daemon.association",
    "daemon.cli",
    "daemon.commitment",
    "daemon.retention",
    "daemon.scp",
    "daemon.scu",
    "daemon.worker",
    "inference.results",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tests.chaos.rounds",  # a child imports the main module again, which imports this
):
    import_module(_name)
