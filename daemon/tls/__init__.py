"""TLS on every wire: contexts from files, renewal, the identity of a peer, faults in words."""

from daemon.tls.client import TlsClient, destination_client, provider_context, repository_client
from daemon.tls.contexts import (
    Credentials,
    TlsError,
    client_context,
    require_secret,
    require_trusted,
)
from daemon.tls.files import certificates, credentials, faults, faults_of, trusted
from daemon.tls.identity import PeerCertificate, describe_wanted, is_wanted
from daemon.tls.renewal import Renewed
from daemon.tls.server import node_context, page_context
from daemon.tls.words import EXPIRED, in_words

__all__ = [
    "EXPIRED",
    "Credentials",
    "PeerCertificate",
    "Renewed",
    "TlsClient",
    "TlsError",
    "certificates",
    "client_context",
    "credentials",
    "describe_wanted",
    "destination_client",
    "faults",
    "faults_of",
    "in_words",
    "is_wanted",
    "node_context",
    "page_context",
    "provider_context",
    "repository_client",
    "require_secret",
    "require_trusted",
    "trusted",
]
