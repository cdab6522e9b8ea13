"""TLS on every wire: contexts from files, renewal, the identity of a peer, faults in words."""

from daemon.tls.client import TlsClient, destination_client, provider_context, repository_client
from daemon.tls.contexts import Credentials, TlsError, client_context, server_context
from daemon.tls.identity import PeerCertificate, describe_wanted, is_wanted
from daemon.tls.renewal import Renewed
from daemon.tls.server import credentials, node_context, troubles
from daemon.tls.words import in_words

__all__ = [
    "Credentials",
    "PeerCertificate",
    "Renewed",
    "TlsClient",
    "TlsError",
    "client_context",
    "credentials",
    "describe_wanted",
    "destination_client",
    "in_words",
    "is_wanted",
    "node_context",
    "provider_context",
    "repository_client",
    "server_context",
    "troubles",
]
