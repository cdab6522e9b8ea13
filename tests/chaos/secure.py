"""TLS for a run: one authority, a certificate for the node, and a certificate for its peers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.peers.certificates import Authority, Pair


@dataclass(frozen=True)
class Secure:
    """Only paths, so that it can be passed to a process that is forked later."""

    ca: Path
    node: Pair
    others: Pair

    @classmethod
    def make(cls, folder: Path) -> Secure:
        authority = Authority(folder)
        return cls(authority.certificate, authority.issue("node"), authority.issue("others"))

    def settings(self, port: int) -> dict[str, Any]:
        """The node's settings: no plain port, TLS with both sides verified."""
        tls = {**self.node.settings(), "ca": str(self.ca), "port": port}
        return {"port": None, "tls": tls}

    def client(self) -> tuple[ssl.SSLContext, str]:
        """The `tls_args` of pynetdicom's associate()."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.others.certificate, self.others.key)
        return context, "localhost"

    def server(self) -> ssl.SSLContext:
        """The `ssl_context` of pynetdicom's start_server()."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.others.certificate, self.others.key)
        return context
