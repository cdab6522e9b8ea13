"""The ways out: a mail server (SMTP with TLS) and a webhook."""

from __future__ import annotations

import contextlib
import logging
import smtplib
import socket
from typing import Protocol

from daemon.alerts.files import read_address, read_secret, tls_context
from daemon.alerts.message import as_json, as_mail
from daemon.alerts.troubles import shown
from daemon.config import Config, Mail, Webhook
from daemon.config.public import hidden
from daemon.ledger import AlarmMessage

log = logging.getLogger("pleura.alerts")

_PATIENCE_S = 20.0


class RouteError(Exception):
    """The route did not take a message, in one line. A later try may succeed."""


class Route(Protocol):
    """A way out."""

    # mail, webhook
    name: str

    def send(self, message: AlarmMessage) -> None:
        """Hand over one message. Raises RouteError."""

    def __str__(self) -> str:
        """The recipient, for the log."""


class MailRoute:
    """Mail to a server that is named in the settings."""

    name = "mail"

    def __init__(self, mail: Mail, node: str) -> None:
        self._mail = mail
        self._node = node

    def __str__(self) -> str:
        return f"mail server {self._mail.host}:{self._mail.port}"

    def send(self, message: AlarmMessage) -> None:
        """Hand over one message. Raises RouteError."""
        try:
            mail = as_mail(message, self._node, self._mail.sender, self._mail.recipients)
            with contextlib.closing(self._connected()) as server:
                refused = server.send_message(mail)
                # The server has the mail: a bad farewell must not send it again.
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    server.quit()
        except smtplib.SMTPRecipientsRefused as error:
            raise RouteError(f"it refuses every recipient {_answers(error.recipients)}") from error
        except smtplib.SMTPResponseException as error:
            text = error.smtp_error
            words = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
            raise RouteError(f"it answers {error.smtp_code} {shown(words, 200)}") from error
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise RouteError(_in_words(error)) from error

        if refused:
            log.warning("alerts: %s refuses recipients %s", self, _answers(refused))

    def _connected(self) -> smtplib.SMTP:
        mail = self._mail
        context = None if mail.security == "none" else tls_context(mail.ca)
        if mail.security == "tls":
            assert context is not None
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                mail.host, mail.port, timeout=_PATIENCE_S, context=context
            )
        else:
            server = smtplib.SMTP(mail.host, mail.port, timeout=_PATIENCE_S)

        try:
            if mail.security == "starttls":
                # Raises where the server does not offer it: nothing goes on in plain text.
                server.starttls(context=context)
            if mail.user is not None and mail.password_file is not None:
                server.login(mail.user, read_secret(mail.password_file))
        except BaseException:
            server.close()
            raise
        return server


class WebhookRoute:
    """A POST of JSON to a web service."""

    name = "webhook"

    def __init__(self, webhook: Webhook, node: str) -> None:
        self._webhook = webhook
        self._node = node

    def __str__(self) -> str:
        if self._webhook.url_file is not None:
            return f"webhook of {self._webhook.url_file}"
        # A service may have its token in the URL's query.
        return f"webhook {hidden(self._webhook.url)}"

    def send(self, message: AlarmMessage) -> None:
        """Hand over one message. Raises RouteError."""
        # Only a node with a webhook loads it.
        import httpx

        headers = {"Idempotency-Key": message.id}
        try:
            if self._webhook.token_file is not None:
                headers["Authorization"] = f"Bearer {read_secret(self._webhook.token_file)}"
            context = tls_context(self._webhook.ca)
            url = self._address()
            body = as_json(message, self._node)
            with (
                httpx.Client(verify=context, timeout=_PATIENCE_S) as client,
                # The answer's body is not read: it may be of any size.
                client.stream("POST", url, json=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise RouteError(_in_words(error)) from error
        if not 200 <= status < 300:
            raise RouteError(f"it answers HTTP {status}")

    def _address(self) -> str:
        """Where to post. Raises OSError, ValueError."""
        if self._webhook.url_file is not None:
            return read_address(self._webhook.url_file)
        assert self._webhook.url is not None
        return self._webhook.url


def routes_of(config: Config) -> dict[str, Route]:
    """The routes that the settings name, by name."""
    alerts = config.alerts
    if alerts is None:
        return {}
    node = f"{config.ae_title}@{socket.gethostname()}"
    routes: list[Route] = []
    if alerts.mail is not None:
        routes.append(MailRoute(alerts.mail, node))
    if alerts.webhook is not None:
        routes.append(WebhookRoute(alerts.webhook, node))
    return {route.name: route for route in routes}


def _answers(refused: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(
        f"{address}: {code} {shown(text.decode('ascii', 'replace'), 80)}"
        for address, (code, text) in refused.items()
    )


def _in_words(error: Exception) -> str:
    """The kind of an error and its first line, bounded."""
    words = getattr(error, "strerror", None) or str(error)
    first = words.splitlines()[0] if words else ""
    return f"{type(error).__name__}: {shown(first, 200)}"


def hand_over(route: Route, message: AlarmMessage) -> None:
    """Hand over one message; whatever breaks is this route's trouble alone. Raises RouteError."""
    try:
        route.send(message)
    except RouteError:
        raise
    except Exception as error:
        raise RouteError(_in_words(error)) from error
