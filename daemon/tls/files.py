"""Every certificate, key and secret that the settings name, and what is wrong with each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from daemon.config import Config, DicomDestination
from daemon.tls.client import destination_credentials, repository_credentials
from daemon.tls.contexts import Credentials, TlsError, require_secret, require_trusted
from daemon.tls.server import own_credentials, page_credentials


def credentials(config: Config) -> Iterator[Credentials]:
    """Every certificate of our own that the settings name."""
    if config.tls is not None:
        yield own_credentials(config.tls)
    for destination in config.destinations:
        yield from _own(config, destination)
    if config.web is not None and config.web.tls is not None:
        yield page_credentials(config.web.tls)

    audit = repository_credentials(config.audit) if config.audit is not None else None
    if audit is not None:
        yield audit


def trusted(config: Config) -> Iterator[tuple[str, Path]]:
    """Every file of certificates that peers are verified against, with its key."""
    if config.tls is not None and config.tls.ca is not None:
        yield "tls.ca", config.tls.ca
    for destination in config.destinations:
        yield from _theirs(destination)
    if config.web is not None and config.web.oidc is not None and config.web.oidc.ca is not None:
        yield "web.oidc.ca", config.web.oidc.ca
    if config.audit is not None and config.audit.ca is not None:
        yield "audit.ca", config.audit.ca


def certificates(config: Config) -> dict[str, Path]:
    """Every certificate of one system that the settings name, ours and pinned, by its key."""
    ours = {f"{own.where}.certificate": own.certificate for own in credentials(config)}
    pinned = {key: path for key, path in trusted(config) if key.endswith(".pinned_certificate")}
    return ours | pinned


def faults(config: Config) -> list[tuple[str, str]]:
    """Each file that cannot be used as it is: the key of the settings, and the fault in words."""
    secrets = []
    if config.web is not None and config.web.metrics_token_file is not None:
        secrets.append(("web.metrics_token_file", config.web.metrics_token_file))
    if config.web is not None and config.web.oidc is not None:
        path = config.web.oidc.client_secret_file
        secrets += [("web.oidc.client_secret_file", path)] if path is not None else []

    return [
        *_faults(list(credentials(config)), list(trusted(config))),
        *_found([(key, partial(require_secret, key, path)) for key, path in secrets]),
    ]


def faults_of(config: Config, destination: DicomDestination) -> list[tuple[str, str]]:
    """The same for one destination, which may use the node's own certificate."""
    own = destination_credentials(config, destination)
    return _faults([own] if own else [], list(_theirs(destination)))


def _own(config: Config, destination: object) -> Iterator[Credentials]:
    if isinstance(destination, DicomDestination):
        own = destination_credentials(config, destination)
        if own is not None and own.where != "tls":
            yield own


def _theirs(destination: object) -> Iterator[tuple[str, Path]]:
    if not isinstance(destination, DicomDestination) or destination.tls is None:
        return
    for name in ("ca", "pinned_certificate"):
        path = getattr(destination.tls, name)
        if path is not None:
            yield f"destinations[{destination.name}].tls.{name}", path


def _faults(
    ours: Sequence[Credentials], theirs: Sequence[tuple[str, Path]]
) -> list[tuple[str, str]]:
    checks: list[tuple[str, Callable[[], object]]] = [
        (f"{own.where}.certificate", own.own) for own in ours
    ]
    checks += [(key, partial(require_trusted, key, path)) for key, path in theirs]
    return _found(checks)


def _found(checks: Sequence[tuple[str, Callable[[], object]]]) -> list[tuple[str, str]]:
    found = []
    for key, check in checks:
        try:
            check()
        except TlsError as error:
            found.append((key, str(error)))
        except OSError as error:
            # A file that vanishes between two looks at it.
            found.append((key, f"{key}: {error}"))
    return found
