"""The page over HTTPS: a renewed certificate is served without a restart."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from daemon.config import Config
from daemon.ledger import Ledger
from daemon.metrics.host import certificates
from daemon.spool import Spool
from daemon.web.server import PageServer
from tests.web.site import users
from tools.peers.certificates import Authority, Pair


def test_the_page_serves_renewed_files_and_keeps_the_old_while_new_ones_are_broken(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    ca = Authority(tmp_path / "ca")
    mine = Pair(tmp_path / "page.pem", tmp_path / "page.key")
    _install(ca.issue("first"), mine)
    port = free_port()
    settings = Config.model_validate(
        {
            "ledger": f"sqlite:///{tmp_path}/ledger.db",
            "spool": str(tmp_path / "spool"),
            "web": {"port": port, "users": users(), "tls": mine.settings()},
        }
    )
    assert settings.web is not None
    # Its expiry raises an alarm, like that of every other certificate.
    assert [key for key, _ in certificates(settings)] == ["web.tls.certificate"]

    ledger = Ledger(settings.ledger)
    server = PageServer(settings, settings.web, ledger, Spool(settings.spool))
    server.start()
    try:
        assert _presented(port, ca, "localhost") == "first"

        # A new certificate with yesterday's file times, also for a client that sends no server name
        _install(ca.issue("second"), mine, age_s=86400)
        assert _presented(port, ca, "localhost") == _presented(port, ca, None) == "second"

        mine.certificate.unlink()
        assert _presented(port, ca, None) == "second"
        _install(ca.issue("third"), mine, key_mode=0o644)
        assert _presented(port, ca, None) == "second"
        mine.key.chmod(0o640)
        assert _presented(port, ca, None) == "third"
    finally:
        server.stop()
        ledger.close()


def _install(pair: Pair, place: Pair, age_s: float = 0.0, key_mode: int = 0o600) -> None:
    for source, target, mode in (
        (pair.certificate, place.certificate, 0o644),
        (pair.key, place.key, key_mode),
    ):
        part = target.with_suffix(".part")
        part.write_bytes(source.read_bytes())
        part.chmod(mode)
        then = part.stat().st_mtime - age_s
        os.utime(part, (then, then))
        part.rename(target)


def _presented(port: int, ca: Authority, name: str | None) -> str:
    """The common name of the certificate that a new connection sees."""
    context = ssl.create_default_context(cafile=str(ca.certificate))
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30.0) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        told = secured.getpeercert()
        assert told is not None
        return next(str(value) for ((key, value),) in told["subject"] if key == "commonName")
