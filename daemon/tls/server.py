"""The node's own end of TLS, from the settings; and everything wrong with the settings' files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from daemon.config import Config, DicomDestination, ServerTls
from daemon.tls.client import (
    destination_client,
    destination_credentials,
    provider_context,
    repository_client,
    repository_credentials,
)
from daemon.tls.contexts import Credentials, TlsError, require_secret, server_context
from daemon.tls.renewal import Renewed


def own_credentials(tls: ServerTls) -> Credentials:
    """The node's certificate and key."""
    return Credentials("tls", tls.certificate, tls.key, tls.key_passphrase_file)


def node_context(tls: ServerTls) -> Renewed:
    """The context of the TLS port.

    Raises:
        TlsError: a file cannot be used.
    """
    own = own_credentials(tls)
    trusted = tls.ca if tls.client != "none" else None
    files = own.files + ([trusted] if trusted else [])
    return Renewed(
        "tls",
        lambda: server_context(own, trusted, tls.client, tls.profile, tls.minimum_version),
        files,
    )


def credentials(config: Config) -> Iterator[Credentials]:
    """Every certificate of ours that the settings name."""
    if config.tls is not None:
        yield own_credentials(config.tls)
    for destination in config.destinations:
        if isinstance(destination, DicomDestination):
            theirs = destination_credentials(config, destination)
            if theirs is not None and theirs.where != "tls":
                yield theirs
    if config.web is not None and config.web.tls is not None:
        page = config.web.tls
        yield Credentials("web.tls", page.certificate, page.key, page.key_passphrase_file)

    own = repository_credentials(config.audit) if config.audit is not None else None
    if own is not None:
        yield own


def troubles(config: Config) -> Iterator[str]:
    """Each certificate, key or token of the settings that cannot be used, in words."""
    builds: list[Callable[[], object]] = []
    tls = config.tls
    if tls is not None:
        builds.append(partial(node_context, tls))
    for destination in config.destinations:
        if isinstance(destination, DicomDestination) and destination.tls is not None:
            builds.append(partial(destination_client, config, destination))

    if config.web is not None and config.web.tls is not None:
        page = config.web.tls
        own = Credentials("web.tls", page.certificate, page.key, page.key_passphrase_file)
        builds.append(own.own)
    if config.web is not None and config.web.metrics_token_file is not None:
        token = config.web.metrics_token_file
        builds.append(partial(require_secret, "web.metrics_token_file", token))
    if config.web is not None and config.web.oidc is not None:
        builds.append(partial(provider_context, config.web.oidc))
    if config.audit is not None:
        builds.append(partial(repository_client, config.audit))

    for build in builds:
        try:
            build()
        except TlsError as error:
            yield str(error)
