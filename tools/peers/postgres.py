"""A private PostgreSQL: a fresh cluster on a loopback port, started and stopped on command.

The server refuses to run as root, and other users cannot enter pytest's folders. So its data are in
a separate folder, which root gives to the user `postgres` of Debian's package.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_DEADLINE_S = 60.0
# The cluster's superuser, who needs no password.
_USER = "pleura"
# postgres(1).
_STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, of the newest version; None if not installed."""
    # Debian keeps the server's programs off the PATH.
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name)
    )
    elsewhere = shutil.which("initdb")
    folders = [*debian, *([Path(elsewhere).resolve().parent] if elsewhere else [])]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres:
    """A cluster, as a context manager that starts and removes it. Its log is `folder`/postgres.log.

    `durable=False` disables fsync, which makes a difference only at a power loss.
    """

    def __init__(
        self, folder: Path, port: int, durable: bool = True, address: str = "127.0.0.1"
    ) -> None:
        programs = binaries()
        assert programs is not None, "PostgreSQL's server is not installed"
        self._programs = programs

        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "postgres.log"
        self.address = address
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

        self._home = Path(tempfile.mkdtemp(prefix="pleura-postgres-"))
        self._data = self._home / "data"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self._home, "postgres", "postgres")
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}

        trusting = ("-U", _USER, "-A", "trust")
        plain = ("-E", "UTF8", "--no-locale", "--no-sync")
        self._run("initdb", "-D", str(self._data), *trusting, *plain)
        self._configure(durable)

    def _configure(self, durable: bool) -> None:
        settings = {
            "port": str(self.port),
            "listen_addresses": f"'{self.address}'",
            "unix_socket_directories": "''",
            "shared_buffers": "32MB",
            "max_connections": "100",
            "fsync": "on" if durable else "off",
        }

        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = {value}\n" for key, value in settings.items())
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet trust\n")

    def url(self, database: str = "postgres") -> str:
        """The URL for the setting `ledger`."""
        return f"postgresql+psycopg://{_USER}@{self.address}:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database; returns its URL."""
        self._run("createdb", *self._here(), name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, even if clients are connected to it."""
        self._run("dropdb", *self._here(), "--force", name)

    def start(self) -> None:
        """Start the server; returns when it accepts connections."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._data)],
                stdout=log,
                stderr=log,
                cwd=self._home,
                **self._as,
            )

        deadline = time.monotonic() + _DEADLINE_S
        while not self._ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"PostgreSQL does not start; log: {self.log}"
            time.sleep(0.02)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server.

        `mode`: fast rolls back open transactions, immediate is like a crash, smart waits for the
        clients.
        """
        assert self._process is not None
        self._process.send_signal(_STOP[mode])
        self._process.wait(_DEADLINE_S)
        self._process = None

    def restart(self, mode: str = "fast") -> None:
        """Stop, then start; connections are lost."""
        self.stop(mode)
        self.start()

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.stop("immediate")
        shutil.rmtree(self._home)

    def _ready(self) -> bool:
        # The server writes its status into the last line of the lock file (PM_STATUS_READY).
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None
        return (
            lines[:1] == [str(self._process.pid)]
            and len(lines) >= 8
            and lines[7].strip() == "ready"
        )

    def _here(self) -> list[str]:
        return ["-h", self.address, "-p", str(self.port), "-U", _USER]

    def _run(self, program: str, *arguments: str) -> None:
        answer = subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self._home,
            **self._as,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
