"""The node's TLS servers, from the settings: the DICOM port and the page."""

from __future__ import annotations

import ssl

from daemon.config import ServerTls
from daemon.config.web import WebTls
from daemon.tls.contexts import Credentials, server_context
from daemon.tls.renewal import Renewed


def own_credentials(tls: ServerTls) -> Credentials:
    """The node's certificate and key."""
    return Credentials("tls", tls.certificate, tls.key, tls.key_passphrase_file)


def page_credentials(tls: WebTls) -> Credentials:
    """The page's certificate and key."""
    return Credentials("web.tls", tls.certificate, tls.key, tls.key_passphrase_file)


def node_context(tls: ServerTls) -> Renewed:
    """The context of the TLS port.

    Raises:
        TlsError: a file cannot be used.
    """
    own = own_credentials(tls)
    trusted = tls.ca if tls.client != "none" else None
    files = own.files + ([trusted] if trusted else [])

    renewed = Renewed(
        "tls",
        lambda pair: server_context(
            pair or own, trusted, tls.client, tls.profile, tls.minimum_version
        ),
        files,
        own,
    )
    renewed.current()
    return renewed


def page_context(tls: WebTls) -> ssl.SSLContext:
    """The context of the page: TLS 1.2 with forward secrecy and authenticated encryption, or 1.3.

    Its server keeps one context for its whole life, so each handshake asks for the newest.

    Raises:
        TlsError: a file cannot be used.
    """
    own = page_credentials(tls)
    renewed = Renewed(
        "web.tls",
        lambda pair: server_context(pair or own, None, "none", "non-downgrading", "1.2"),
        own.files,
        own,
    )
    context = renewed.current()

    # OpenSSL calls it for every client, also for one that sends no name.
    def take_newest(connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
        connection.context = renewed.current()

    context.sni_callback = take_newest
    return context
