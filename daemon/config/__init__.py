"""The settings: one YAML file, read and checked into one frozen `Config`."""

from daemon.config.alerts import Alerts, Mail, Webhook
from daemon.config.audit import Audit
from daemon.config.changes import LIVE, ROLE_OF, difference, digest, digests, restart_keys
from daemon.config.editors import json_schema
from daemon.config.extras import missing_extras
from daemon.config.oidc import Oidc
from daemon.config.public import public
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
    Shadow,
)
from daemon.config.tls import CertificateIdentity, DestinationTls, ServerTls
from daemon.config.values import sqlite_file
from daemon.config.web import Web, WebUser

__all__ = [
    "LIVE",
    "PROFILES",
    "ROLE_OF",
    "Admission",
    "Alerts",
    "Audit",
    "CertificateIdentity",
    "Config",
    "ConfigError",
    "Destination",
    "DestinationTls",
    "DicomDestination",
    "FolderDestination",
    "Mail",
    "Oidc",
    "Overlay",
    "Peer",
    "Retention",
    "ServerTls",
    "Shadow",
    "Web",
    "WebUser",
    "Webhook",
    "begin",
    "commented_file",
    "difference",
    "digest",
    "digests",
    "json_schema",
    "load",
    "missing_extras",
    "public",
    "restart_keys",
    "show",
    "sqlite_file",
    "with_device",
]
