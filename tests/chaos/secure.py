"""TLS for a run: one authority, a certificate for the node and one for the systems around it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.peers.certificates import Authority, Pair


@dataclass(frozen=True)
class Secure:
    """Paths alone, so that a process that is forked later can be given it."""

    ca: Path
    node: Pair
    others: Pair

    @classmethod
    def make(cls, folder: Path) -> Secure:
        authority = Authority(folder)
        return cls(authority.certificate, authority.issue("node"), authority.issue("others"))

    def settings(self, port: int) -> dict[str, Any]:
        """The node's settings: TLS alone, both sides verified."""
        tls = {**self.node.settings(), "ca": str(self.ca), "port": port}
        return {"port": None, "tls": tls}

    def client(self) -> tuple[ssl.SSLContext, str]:
        """What pynetdicom's associate() takes as `tls_args`."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.others.certificate, self.others.key)
        return context, "localhost"

    def server(self) -> ssl.SSLContext:
        """What pynetdicom's start_server() takes as `ssl_context`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.others.certificate, self.others.key)
        return context
