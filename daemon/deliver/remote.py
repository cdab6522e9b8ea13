"""How the network reaches an archive of the settings."""

from __future__ import annotations

from daemon.config import Config, DicomDestination
from daemon.dicom.link import Remote
from daemon.tls import destination_client


def remote_of(config: Config, destination: DicomDestination) -> Remote:
    """The archive's AE title, host and port, and TLS toward it where the settings have that."""
    security = destination_client(config, destination)
    return Remote(destination.ae_title, destination.host, destination.port, security)
