"""TLS on connections that this node opens: to archives, and to the audit repository."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from daemon.config import Audit, Config, DestinationTls, DicomDestination, Oidc
from daemon.tls.contexts import Credentials, TlsError, client_context
from daemon.tls.renewal import Renewed
from daemon.tls.words import in_words


class TlsClient:
    """Wraps connections to one peer."""

    def __init__(self, ours: str, trusted: str, context: Renewed, name: str | None) -> None:
        """`ours`, `trusted`: the keys of the settings in force, as in_words() takes them.

        `name`: the name that the peer's certificate must have; None: the host that is connected to.
        """
        self._ours = ours
        self._trusted = trusted
        self._context = context
        self._name = name

    def wrap(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        """Do the handshake over a TCP connection, which is closed if that fails.

        The time-out of `connection` bounds the peer's time to answer. SNI carries the name.

        Raises:
            OSError: the handshake failed, or one of our files cannot be used; in_words() says why.
        """
        try:
            context = self._context.current()
            return context.wrap_socket(connection, server_hostname=self._name or host)
        except TlsError as error:
            connection.close()
            raise OSError(str(error)) from error
        except (TimeoutError, ConnectionError) as error:
            # Also from an archive without TLS, which resets the connection or waits for a PDU.
            connection.close()
            raise OSError(in_words(error, self._ours, self._trusted)) from error
        except BaseException:
            connection.close()
            raise

    def in_words(self, error: OSError) -> str:
        """The meaning of an error of wrap() or of its connection, and the remedy."""
        if isinstance(error, ssl.SSLError):
            return in_words(error, self._ours, self._trusted)
        return error.strerror or str(error)


def destination_client(config: Config, destination: DicomDestination) -> TlsClient | None:
    """TLS toward an archive; None if its settings have no TLS.

    What the destination does not set comes from `tls`: certificate, key and `ca`. Without any `ca`,
    the system's trusted certificates are used. A file that cannot be used fails each connection,
    not the role.
    """
    theirs = destination.tls
    if theirs is None:
        return None

    where = f"destinations[{destination.name}].tls"
    credentials = destination_credentials(config, destination)
    trusted_key, trusted = _trusted_by(config, destination.name, theirs)
    is_pinned = theirs.pinned_certificate is not None
    versions = (theirs.profile, theirs.minimum_version)
    context = _renewed(where, credentials, trusted_key, trusted, is_pinned, versions)
    ours = credentials.where if credentials is not None else where
    return TlsClient(ours, trusted_key, context, theirs.name)


def _trusted_by(config: Config, name: str, theirs: DestinationTls) -> tuple[str, Path | None]:
    """The file that an archive is verified against, and the key of the settings that names it."""
    where = f"destinations[{name}].tls"
    if theirs.pinned_certificate is not None:
        return f"{where}.pinned_certificate", theirs.pinned_certificate
    if theirs.ca is None and config.tls is not None and config.tls.ca is not None:
        return "tls.ca", config.tls.ca
    return f"{where}.ca", theirs.ca


def repository_client(audit: Audit) -> TlsClient | None:
    """TLS toward the audit repository; None if it is reached without TLS."""
    if audit.repository is None or not audit.repository.startswith("tls://"):
        return None

    credentials = repository_credentials(audit)
    versions = ("non-downgrading", "1.2")
    context = _renewed("audit", credentials, "audit.ca", audit.ca, False, versions)
    return TlsClient("audit", "audit.ca", context, None)


def provider_context(oidc: Oidc) -> Renewed:
    """The context of connections to the OpenID Connect provider."""
    versions = ("non-downgrading", "1.2")
    return _renewed("web.oidc", None, "web.oidc.ca", oidc.ca, False, versions)


def repository_credentials(audit: Audit) -> Credentials | None:
    """The certificate that the node presents to the audit repository, if any."""
    if audit.certificate is None or audit.key is None:
        return None
    return Credentials("audit", audit.certificate, audit.key, audit.key_passphrase_file)


def destination_credentials(config: Config, destination: DicomDestination) -> Credentials | None:
    """The certificate that an archive is shown: the destination's own, else the node's."""
    theirs = destination.tls
    if theirs is None:
        return None
    if theirs.certificate is not None and theirs.key is not None:
        passphrase = theirs.key_passphrase_file
        where = f"destinations[{destination.name}].tls"
        return Credentials(where, theirs.certificate, theirs.key, passphrase)
    if config.tls is not None:
        ours = config.tls
        return Credentials("tls", ours.certificate, ours.key, ours.key_passphrase_file)
    return None


def _renewed(
    where: str,
    credentials: Credentials | None,
    trusted_key: str,
    trusted: Path | None,
    is_pinned: bool,
    versions: tuple[str, str],
) -> Renewed:
    files = credentials.files if credentials else []
    if trusted is not None:
        files = [*files, trusted]

    return Renewed(
        where,
        lambda pair: client_context(trusted_key, pair, trusted, is_pinned, *versions),
        files,
        credentials,
    )
