"""The settings: one YAML file, read and checked into one frozen `Config`."""

from daemon.config.audit import Audit
from daemon.config.reading import ConfigError, begin, commented_file, load, show, with_device
from daemon.config.schema import (
    PROFILES,
    Admission,
    Config,
    Destination,
    DicomDestination,
    FolderDestination,
    Overlay,
    Peer,
    Retention,
)
from daemon.config.tls import CertificateIdentity, DestinationTls, ServerTls

__all__ = [
    "PROFILES",
    "Admission",
    "Audit",
    "CertificateIdentity",
    "Config",
    "ConfigError",
    "Destination",
    "DestinationTls",
    "DicomDestination",
    "FolderDestination",
    "Overlay",
    "Peer",
    "Retention",
    "ServerTls",
    "begin",
    "commented_file",
    "load",
    "show",
    "with_device",
]
