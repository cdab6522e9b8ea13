"""The process that all victims are forked from: it loads everything, and runs no thread."""

from importlib import import_module

for _name in (
    "daemon.dicom.link",
    "daemon.cli",
    "daemon.deliver.commitment",
    "daemon.deliver.retention",
    "daemon.receive.scp",
    "daemon.deliver.deliverer",
    "daemon.analyse.worker",
    "inference.results",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tests.chaos.rounds",  # a child imports the main module again, which imports this
):
    import_module(_name)
