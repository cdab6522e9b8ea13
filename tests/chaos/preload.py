"""Imports what victims need. The fork server loads it once, without starting threads, and forks
every victim from there.
"""

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
    # A child imports the main module again, which imports this.
    "tests.chaos.rounds",
):
    import_module(_name)
