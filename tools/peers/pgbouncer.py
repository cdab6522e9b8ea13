"""A private PgBouncer in transaction mode in front of a private PostgreSQL, on a loopback port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy.engine import make_url

from tools.peers.ports import unused_port

_DEADLINE_S = 60.0


def program() -> str | None:
    """The path of pgbouncer, which Debian puts into sbin; None if it is not installed."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class PgBouncer:
    """A connection pooler, as a context manager. `url` is for the setting `ledger`."""

    def __init__(self, server_url: str) -> None:
        path = program()
        assert path is not None, "pgbouncer is not installed"
        self._program = path

        self._server = make_url(server_url)
        self._home = Path(tempfile.mkdtemp(prefix="pleura-pgbouncer-"))
        self._port = unused_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = self._server.set(port=self._port).render_as_string(hide_password=False)

    def __enter__(self) -> PgBouncer:
        server = self._server
        settings = self._home / "pgbouncer.ini"
        users = self._home / "users.txt"
        users.write_text(f'"{server.username}" ""\n')

        settings.write_text(
            "[databases]\n"
            f"* = host={server.host} port={server.port}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self._port}\n"
            "unix_socket_dir =\n"
            "auth_type = trust\n"
            f"auth_file = {users}\n"
            "pool_mode = transaction\n"
            "default_pool_size = 3\n"
            f"logfile = {self._home}/pgbouncer.log\n"
        )

        # PgBouncer refuses to run as root.
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            for path in (self._home, settings, users):
                shutil.chown(path, "postgres", "postgres")
            as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}

        self._process = subprocess.Popen(
            [self._program, "-q", str(settings)], cwd=self._home, **as_user
        )
        self._wait()
        return self

    def _wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + _DEADLINE_S
        plain = make_url(self.url).set(drivername="postgresql")
        while True:
            try:
                psycopg.connect(plain.render_as_string(hide_password=False)).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PgBouncer does not start"
                time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_DEADLINE_S)
        shutil.rmtree(self._home)
