"""Certificates made for a test or benchmark, with the openssl command (3.0 or later)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_NEW_KEYS = {
    "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "rsa": ["-newkey", "rsa:2048"],
}


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: Path
    key: Path

    def settings(self) -> dict[str, str]:
        """The keys of `tls` that name the files."""
        return {"certificate": str(self.certificate), "key": str(self.key)}


class Authority:
    """An issuer of certificates; its own certificate is in PEM at `certificate`."""

    def __init__(self, folder: Path, name: str = "Test CA", key: str = "ec") -> None:
        """`key`: `ec` (P-256), or `rsa` (2048 bits)."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._new_key = _NEW_KEYS[key]

        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        self._made(["req", "-x509", "-days", "3"], self._key, self.certificate, f"/CN={name}")

    def issue(
        self, name: str, subject: str = "", names: str = _NAMES, extensions: Sequence[str] = ()
    ) -> Pair:
        """A certificate for server and client unless `extensions` say else; for three days."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        command = ["req", "-x509", "-days", "3", "-CA", self.certificate, "-CAkey", self._key]
        added = [
            part
            for extension in (names, "basicConstraints=CA:FALSE", *extensions)
            for part in ("-addext", extension)
        ]
        self._made([*command, *added], pair.key, pair.certificate, subject or f"/CN={name}")
        return pair

    def issue_expired(self, name: str) -> Pair:
        """A certificate that expired yesterday."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request = self._folder / f"{name}.csr"
        self._made(["req"], pair.key, request, f"/CN={name}")
        issuer = ["-CA", self.certificate, "-CAkey", self._key, "-days", "-1"]
        _openssl("x509", "-req", "-in", request, *issuer, "-out", pair.certificate)
        return pair

    def _made(self, command: list[object], key: Path, out: Path, subject: str) -> None:
        files = ["-nodes", "-keyout", key, "-out", out, "-subj", subject]
        _openssl(*command, *self._new_key, *files)
        key.chmod(0o600)


def _openssl(*arguments: object) -> None:
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
