"""Keys that need an extra of the installation."""

from __future__ import annotations

from collections.abc import Iterator

from daemon import installed
from daemon.config.schema import Config


def missing_extras(config: Config) -> Iterator[str]:
    """A line for each key whose extra is not installed, for `pleura config check`."""
    has_oidc = config.web is not None and config.web.oidc is not None
    needed = {
        "web.oidc": "oidc" if has_oidc else "",
        "ledger": "postgresql" if config.ledger.startswith("postgresql") else "",
    }
    for key, extra in needed.items():
        if extra and (words := installed.lacking(extra)):
            yield f"{key}: {words}"
