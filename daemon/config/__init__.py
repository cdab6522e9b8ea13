"""The settings: one YAML file, read and checked into one frozen `Config`."""

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

__all__ = [
    "PROFILES",
    "Admission",
    "Config",
    "ConfigError",
    "Destination",
    "DicomDestination",
    "FolderDestination",
    "Overlay",
    "Peer",
    "Retention",
    "begin",
    "commented_file",
    "load",
    "show",
    "with_device",
]
