"""The files that `alerts` names: certificates, passwords and tokens."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

from daemon.config import Config
from daemon.config.alerts import web_address
from daemon.tls.contexts import TlsError, require_secret

_MOST_OF_SECRET = 8192


def wrong_files(config: Config) -> Iterator[str]:
    """A line for each file of `alerts` that cannot be used, for `pleura config check`."""
    alerts = config.alerts
    if alerts is None:
        return
    mail, webhook = alerts.mail, alerts.webhook

    secrets = (
        ("alerts.mail.password_file", mail.password_file if mail else None, read_secret),
        ("alerts.webhook.url_file", webhook.url_file if webhook else None, read_address),
        ("alerts.webhook.token_file", webhook.token_file if webhook else None, read_secret),
    )
    for key, path, read in secrets:
        if path is not None:
            try:
                require_secret(key, path)
                read(path)
            except TlsError as error:
                yield str(error)
            except (OSError, ValueError) as error:
                yield f"{key}: found {path}, which cannot be used ({_in_words(error)})"

    authorities = {
        "alerts.mail.ca": mail.ca if mail else None,
        "alerts.webhook.ca": webhook.ca if webhook else None,
    }
    for key, path in authorities.items():
        try:
            tls_context(path)
        except (OSError, ssl.SSLError) as error:
            yield f"{key}: found {path}, which cannot be used ({_in_words(error)}); allowed: PEM"


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """A context that verifies a server against `ca`, or against what the system trusts.

    Raises OSError, ssl.SSLError.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def read_secret(path: Path) -> str:
    """A password, a token, or an address that is one. Raises OSError, ValueError."""
    secret = path.read_bytes()[:_MOST_OF_SECRET].strip()
    if not secret:
        raise ValueError("it is empty; it holds the password or the token")
    if not secret.isascii():
        # Our own message: a codec's message quotes a part of the secret.
        raise ValueError("a character that is not ASCII; smtplib and HTTP send ASCII alone")
    return secret.decode("ascii")


def read_address(path: Path) -> str:
    """The address of a webhook. Raises OSError, ValueError, whose messages do not quote it."""
    secret = read_secret(path)
    try:
        return web_address(secret)
    except ValueError as error:
        raise ValueError(f"it holds no web address; allowed: {error}") from error


def _in_words(error: Exception) -> str:
    """The kind of an error and its first line, bounded."""
    words = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {words.partition(chr(10))[0][:200]}"
