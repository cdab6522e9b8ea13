"""Alerts: each trouble is reported once when it begins and once when it ends, through a real mail
server and a real web service.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from daemon.alerts.files import wrong_files
from daemon.alerts.kinds import KINDS
from daemon.alerts.routes import RouteError, WebhookRoute, routes_of
from daemon.alerts.sender import AlertSender
from daemon.alerts.silence import missing_images
from daemon.alerts.troubles import Sight, troubles
from daemon.alerts.watch import Watch
from daemon.backoff import Backoff
from daemon.cli import main
from daemon.commands import status
from daemon.config import Config, Webhook
from daemon.config.public import public
from daemon.deliver.deliverer import Deliverer
from daemon.ledger import Alarm, AlarmMessage, Arrival, Completion, Ledger, StoredResult, Unresolved
from daemon.ledger.schema import alarms, instances
from daemon.live import RefusedError
from daemon.spool import Spool
from tests.unit.clock import START, Clock
from tools.peers.certificates import Authority
from tools.peers.mail import MailServer, WebService
from tools.peers.waiting import wait_until

pytestmark = pytest.mark.xdist_group("alerts")

_HOUR_S = 3600
_WEEK_H = 168
_HOSTILE = "X\r\nBcc: thief@example.org\r\n\r\nEvil\x1b"
_STOP = threading.Event()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def mail_server(authority: Authority) -> Iterator[MailServer]:
    with MailServer(authority.issue("mail")) as server:
        yield server


@pytest.fixture(scope="module")
def web_service(authority: Authority) -> Iterator[WebService]:
    with WebService(authority.issue("web")) as service:
        yield service


@pytest.fixture
def small(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """A ledger on SQLite alone; one test of this module covers both engines."""
    ledger = Ledger(f"sqlite:///{tmp_path}/small.db", clock=clock)
    yield ledger
    ledger.close()


@pytest.fixture
def config(
    tmp_path: Path, authority: Authority, mail_server: MailServer, web_service: WebService
) -> Config:
    """Settings with both alert routes, whose servers have received nothing yet."""
    mail_server.received.clear()
    web_service.received.clear()

    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    mail = {
        "host": "localhost", "port": mail_server.port, "ca": str(authority.certificate),
        "user": "pleura", "password_file": str(secret),
        "sender": "pleura@example.org", "recipients": ["team@example.org", "night@example.org"],
    }  # fmt: skip
    webhook = {
        "url": f"https://localhost:{web_service.port}/hook",
        "ca": str(authority.certificate),
        "token_file": str(secret),
    }

    alerts = {
        "mail": mail,
        "webhook": webhook,
        "silence": {"limits": [{"ae_title": "XRAY1", "minutes": 30}]},
    }
    destinations = [{"name": "pacs", "folder": str(tmp_path / "outbox"), "results": ["SC"]}]
    settings: dict[str, Any] = {"alerts": alerts, "destinations": destinations}
    return Config.model_validate({"spool": str(tmp_path), "host": "127.0.0.1", **settings})


def message(subject: str = "pacs", event: str = "began") -> AlarmMessage:
    facts = {"event": event, "kind": "outage", "subject": subject, "words": subject, "since": START}
    return AlarmMessage("0123abcd", "mail", facts, START, 0)


# -- detecting troubles ----------------------------------------------------------------------------


def test_silence_is_judged_by_the_same_hour_of_earlier_weeks() -> None:
    monday = 500_000
    every_week = {monday - week * _WEEK_H + hour: 6 for week in range(1, 9) for hour in range(8)}
    last_at = float(monday * _HOUR_S)
    assert missing_images(every_week, last_at, last_at + 1800) == pytest.approx(3)
    assert missing_images(every_week, last_at, last_at + 8 * _HOUR_S) == pytest.approx(48)
    # No further images are expected at night.
    assert missing_images(every_week, last_at, last_at + 20 * _HOUR_S) == pytest.approx(48)

    two_weeks = {hour: number for hour, number in every_week.items() if hour > monday - 400}
    assert missing_images(two_weeks, last_at, last_at + 8 * _HOUR_S) == 0
    assert missing_images({}, last_at, last_at + 8 * _HOUR_S) == 0


def test_each_trouble_is_reported_once_at_its_start_and_once_at_its_end(
    ledger: Ledger, clock: Clock, config: Config, mail_server: MailServer, web_service: WebService
) -> None:
    ledger.receive([Arrival("f", "1.2", "1.2.3", "1.2.1", "XRAY1", "dimse", 1, 9)])
    for role in ("receive", "analyse", "deliver"):
        ledger.beat(role, "me")
    ledger.note_destination("pacs", "it is away", 5.0)
    watch = Watch(config, ledger)
    sender = AlertSender(routes_of(config), ledger)
    watch.look()
    assert ledger.alarms.lasting() == []

    clock.now += 40 * 60
    for role in ("receive", "deliver"):
        ledger.beat(role, "me")
    for _ in range(2):
        watch.look()
    assert {row["kind"] for row in ledger.alarms.lasting()} == {
        "outage", "backlog", "role", "silence",
    }  # fmt: skip
    assert sender.turn(_STOP) == 8
    assert sender.turn(_STOP) == 0

    (job,) = ledger.claim_images("me", 1)
    ledger.complete(job, Completion("failed", "d", reason="not_dicom"), {})
    ledger.receive([Arrival("g", "1.2", "1.2.4", "1.2.1", "XRAY1", "dimse", 1, 9)])
    ledger.beat("analyse", "me")
    ledger.note_destination("pacs", None)
    watch.look()
    clock.now += 61
    watch.look()
    assert [row["kind"] for row in ledger.alarms.lasting()] == ["failed"]

    assert sender.turn(_STOP) == 10
    events = [(body["kind"], body["event"]) for body, _ in web_service.received]
    assert sorted(events) == sorted(
        [(kind, event) for kind in ("outage", "backlog", "role", "silence") for event in
         ("began", "over")] + [("failed", "began")]
    )  # fmt: skip
    assert len(mail_server.received) == len(events)


def test_disk_certificate_refusal_and_drift_are_reported_with_details(
    small: Ledger,
    clock: Clock,
    config: Config,
    authority: Authority,
    mail_server: MailServer,
    web_service: WebService,
) -> None:
    pair = authority.issue("node")
    shown = config.model_dump(mode="json")
    shown["tls"] = {**pair.settings(), "client": "none"}
    shown["alerts"]["disk_free_mb"] = 10**9
    near = Config.model_validate(shown)
    small.receive([Arrival("f", "1.2", "1.2.3", "1.2.1", "XRAY1", "dimse", 1, 9)])
    (job,) = small.claim_images("me", 1)
    made = StoredResult("SC", "made", "1.2", "9.9", "1.2.1", 9)
    small.complete(job, Completion("analysed", "d", results=(made,)), {"pacs": ["SC"]})
    small.mark_refused(small.claim_deliveries("pacs", "me", 1)[0], "no", 0x0122)

    clock.now = time.time()
    sight = Sight(
        small.inspect.figures(), small.inspect.unresolved(), {},
        {"XRAY1": "positives: 9 of 60 images"}, "here", clock.now,
    )  # fmt: skip
    assert near.alerts is not None
    found = {alarm.kind: alarm for alarm in troubles(near, near.alerts, sight)}
    assert found["disk"].machine == "here"
    assert found["certificate"].subject == "tls.certificate"
    assert re.fullmatch(r"it ends on [\d-]+; renew it", found["certificate"].words)
    assert found["refused"].words == "refused results of 1970-01-12 (UTC): 1: 9.9"
    assert found["drift"].words == "positives: 9 of 60 images"
    assert {alarm.kind for alarm in found.values()} <= KINDS.keys()

    Watch(near, small).look()
    sender = AlertSender(routes_of(near), small)
    while sender.turn(_STOP):
        pass
    wanted = {"disk", "certificate", "refused"}
    assert wanted <= {body["kind"] for body, _ in web_service.received}
    titles = " ".join(received.mail["Subject"] for received in mail_server.received)
    for kind in wanted:
        assert KINDS[kind].title in titles


def test_a_silent_sender_and_an_unreachable_spool_are_troubles(
    small: Ledger, clock: Clock, config: Config, tmp_path: Path
) -> None:
    away = config.model_copy(update={"spool": tmp_path / "not-mounted"})
    watch = Watch(away, small)
    watch.look()
    clock.now += 31 * 60
    watch.look()
    words = {row["kind"]: row["words"] for row in small.alarms.lasting()}
    assert words["silence"].startswith("no image ever; this process has looked since ")
    assert words["silence"].endswith("; allowed: 30 minutes")
    assert words["disk"].startswith("the spool cannot be seen")


def test_an_inbox_trouble_is_reported_while_its_process_lives(
    small: Ledger, clock: Clock, config: Config
) -> None:
    facts = {"inbox_trouble": "the folder cannot be used: Permission denied"}
    small.beat("receive", "node1/boot:7", facts)
    watch = Watch(config, small, settle_s=0.0)
    watch.look()
    (alarm,) = (row for row in small.alarms.lasting() if row["kind"] == "inbox")
    assert (alarm["subject"], alarm["words"]) == ("node1", facts["inbox_trouble"])
    lines = list(status.lines(small.inspect, ["pacs"], config.spool))
    assert "INBOX of node1: the folder cannot be used: Permission denied" in lines
    shown = status.summary(small.inspect, ["pacs"], config.spool)["troubles"]
    assert [each["words"] for each in shown if each["kind"] == "inbox"] == [alarm["words"]]

    small.beat("receive", "node1/boot:7", {"inbox_trouble": ""})
    watch.look()
    assert "inbox" not in {row["kind"] for row in small.alarms.lasting()}


def test_a_new_route_is_sent_only_the_open_troubles_and_their_ends(
    ledger: Ledger, clock: Clock
) -> None:
    away = Alarm("outage:pacs", "outage", "pacs", "x")
    gone = Alarm("role:analyse", "role", "analyse", "x")
    began_at = clock.now
    ledger.alarms.note([away, gone], [], "a", 0)
    assert ledger.alarms.owed() == 0

    # When the route is added, one trouble is still open and the other has ended.
    clock.now += 100
    ledger.alarms.note([away], ["mail"], "a", 0)
    (began,) = ledger.alarms.claim("me", ["mail"], 60)
    assert (began.facts["event"], began.facts["subject"]) == ("began", "pacs")
    assert began.facts["since"] == began_at
    ledger.alarms.mark_sent(began)

    clock.now += 100
    ledger.alarms.note([away], ["mail", "webhook"], "a", 0)
    (second,) = ledger.alarms.claim("me", ["mail", "webhook"], 60)
    assert (second.route, second.facts["event"]) == ("webhook", "began")
    ledger.alarms.mark_sent(second)

    # Another host, which has no routes, detects the end.
    clock.now += 100
    ledger.alarms.note([], [], "b", 0)
    ends = ledger.alarms.claim("me", ["mail", "webhook"], 60)
    assert sorted((end.route, end.facts["event"]) for end in ends) == [
        ("mail", "over"),
        ("webhook", "over"),
    ]


def test_a_trouble_from_an_earlier_version_is_sent_again_and_its_end_to_every_route(
    ledger: Ledger, ledger_url: str
) -> None:
    away = Alarm("outage:pacs", "outage", "pacs", "x")
    gone = Alarm("role:analyse", "role", "analyse", "x")
    ledger.alarms.note([away, gone], [], "a", 0)
    engine = sa.create_engine(ledger_url)
    with engine.begin() as conn:
        conn.execute(alarms.update().values(told=None))
    engine.dispose()

    ledger.alarms.note([away], ["mail"], "a", 0)
    events = {(one.facts["subject"], one.facts["event"]) for one in _claimed(ledger)}
    assert events == {("pacs", "began"), ("analyse", "over")}


def _claimed(ledger: Ledger) -> list[AlarmMessage]:
    return ledger.alarms.claim("me", ["mail"], 60)


def test_failures_are_queried_once_a_minute(
    small: Ledger, clock: Clock, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    unresolved = small.inspect.unresolved
    asked = []

    def counted() -> list[Unresolved]:
        asked.append(clock.now)
        if len(asked) == 1:
            raise ConnectionError("the ledger is away")
        return unresolved()

    monkeypatch.setattr(small.inspect, "unresolved", counted)
    watch = Watch(config, small)
    # A query that failed is repeated at the next look.
    with pytest.raises(ConnectionError):
        watch.look()
    for _ in range(8):
        watch.look()
        clock.now += 10
    assert asked == [START, START, START + 60]


def test_many_failures_of_one_day_hide_no_failure_of_another_day(
    ledger: Ledger, ledger_url: str, clock: Clock
) -> None:
    clock.now = 20_000.5 * 24 * _HOUR_S
    ledger.receive([Arrival("f", "1.2", "1.2.0", "1.2.1", "X", "dimse", 1, 9)])
    (job,) = ledger.claim_images("me", 1)
    ledger.complete(job, Completion("failed", "d", reason="not_dicom"), {})

    # Add copies of that row: six on the same day and 1005 on the next.
    engine = sa.create_engine(ledger_url)
    with engine.begin() as conn:
        row = dict(conn.execute(sa.select(instances)).mappings().one())
        for number, day in ((6, 0), (1005, 1)):
            row["completed_at"] = clock.now + day * 24 * _HOUR_S
            copies = [
                row | {"id": day * 10 + each, "sop_instance_uid": f"1.2.{each}"}
                for each in range(2, 2 + number)
            ]
            conn.execute(instances.insert(), copies)
    engine.dispose()

    first, second = ledger.inspect.unresolved()
    assert (first.day, first.number, second.day, second.number) == (20_000, 7, 20_001, 1005)
    assert first.sop_instance_uids == tuple(f"1.2.{each}" for each in (7, 6, 5, 4, 3))


def test_a_flapping_trouble_counts_once_and_another_hosts_disk_stays_open(
    small: Ledger, clock: Clock
) -> None:
    small.beat("deliver", "b/boot/1:2")
    here, there = Alarm("disk:a", "disk", "a", "x", "a"), Alarm("disk:b", "disk", "b", "x", "b")
    small.alarms.note([here, there], ["mail"], "a", 60)
    for found in ([], [here], []):
        clock.now += 59
        began, over = small.alarms.note(found, ["mail"], "a", 60)
        assert (began, over) == ([], [])
    clock.now += 60
    assert small.alarms.note([], ["mail"], "a", 60)[1] == ["disk:a"]
    assert [row["key"] for row in small.alarms.lasting()] == ["disk:b"]

    # By now that host was removed or renamed.
    clock.now += 86401
    small.alarms.note([], ["mail"], "a", 0)
    assert small.alarms.lasting() == []


# -- sending messages ------------------------------------------------------------------------------


def test_a_mail_uses_starttls_and_no_name_injects_a_header(
    config: Config, mail_server: MailServer
) -> None:
    routes_of(config)["mail"].send(message(_HOSTILE))
    (received,) = mail_server.received
    assert (received.was_encrypted, received.user) == (True, "pleura")
    assert received.recipients == ["team@example.org", "night@example.org"]
    assert set(received.mail.keys()) >= {"Subject", "Message-ID", "Date", "Auto-Submitted"}
    assert "Bcc" not in received.mail
    assert "\\x0d\\x0aBcc: thief@example.org" in received.mail["Subject"]
    assert "\x1b" not in received.mail.get_content()
    assert 'Runbook: docs/faults.md, "Alarm: outage".' in received.mail.get_content()


def test_no_password_and_no_mail_is_sent_in_plain_text(
    config: Config, authority: Authority
) -> None:
    with MailServer() as plain:
        assert config.alerts is not None
        assert config.alerts.mail is not None
        mail = config.alerts.mail.model_copy(update={"port": plain.port})
        alerts = config.alerts.model_copy(update={"mail": mail})
        with pytest.raises(RouteError, match="STARTTLS"):
            routes_of(config.model_copy(update={"alerts": alerts}))["mail"].send(message())
        assert plain.received == []


def test_a_server_with_a_certificate_from_another_authority_is_refused(
    config: Config, tmp_path: Path, mail_server: MailServer, web_service: WebService
) -> None:
    other = Authority(tmp_path / "other").certificate
    assert config.alerts is not None
    assert config.alerts.mail is not None
    assert config.alerts.webhook is not None
    mail = config.alerts.mail.model_copy(update={"ca": other})
    webhook = config.alerts.webhook.model_copy(update={"ca": other})
    alerts = config.alerts.model_copy(update={"mail": mail, "webhook": webhook})
    for route in routes_of(config.model_copy(update={"alerts": alerts})).values():
        with pytest.raises(RouteError, match="certificate"):
            route.send(message())
    assert mail_server.received == []
    assert web_service.received == []


def test_a_webhook_gets_json_with_its_token(config: Config, web_service: WebService) -> None:
    routes_of(config)["webhook"].send(message(_HOSTILE))
    ((body, headers),) = web_service.received
    assert headers["Authorization"] == "Bearer hush"
    assert headers["Idempotency-Key"] == body["id"] == "0123abcd"
    assert body["event"] == "began"
    assert body["since"] == "1970-01-12T13:46:40+00:00"
    assert all(str(value).isprintable() for value in body.values())


def test_a_refused_message_waits_and_a_message_in_flight_survives_its_sender(
    small: Ledger, clock: Clock, config: Config, web_service: WebService
) -> None:
    small.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], ["webhook"], "a", 60)
    sender = AlertSender(routes_of(config), small, Backoff(first_s=10.0))
    web_service.status = 503
    assert sender.turn(_STOP) == 0
    web_service.status = 204
    assert sender.turn(_STOP) == 0
    clock.now += 10

    # Simulate a process that dies between the claim and the answer.
    (lost,) = small.alarms.claim("dead", ["webhook"], 300.0)
    assert sender.turn(_STOP) == 0
    clock.now += 300
    assert sender.turn(_STOP) == 1
    assert web_service.received[0][0]["id"] == lost.id
    assert small.alarms.owed() == 0


def test_a_password_that_smtp_cannot_carry_is_reported_and_stops_no_other_route(
    small: Ledger, config: Config, tmp_path: Path, web_service: WebService
) -> None:
    (tmp_path / "secret").write_text("Pr\u00fcfung")
    assert config.alerts is not None
    assert config.alerts.webhook is not None
    webhook = config.alerts.webhook.model_copy(update={"token_file": None})
    alerts = config.alerts.model_copy(update={"webhook": webhook})
    routes = routes_of(config.model_copy(update={"alerts": alerts}))
    small.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], routes.keys(), "a", 60)

    assert AlertSender(routes, small).turn(_STOP) == 1
    assert [body["kind"] for body, _ in web_service.received] == ["outage"]
    with pytest.raises(RouteError, match="not ASCII") as caught:
        routes["mail"].send(message())
    assert "\u00fc" not in str(caught.value)
    assert [line.partition(":")[0] for line in wrong_files(config)] == [
        "alerts.mail.password_file",
        "alerts.webhook.token_file",
    ]


def test_an_empty_secret_is_reported_and_the_log_shows_no_token(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("\n")
    (tmp_path / "secret").chmod(0o600)
    assert ["it is empty" in line for line in wrong_files(config)] == [True, True]
    webhook = Webhook.model_validate({"url": "https://chat.example/hook?token=hunter2"})
    assert str(WebhookRoute(webhook, "node")) == "webhook https://chat.example/hook?***"


def test_a_secret_webhook_address_is_read_from_a_file_and_never_shown(
    config: Config, tmp_path: Path, web_service: WebService, authority: Authority
) -> None:
    address = tmp_path / "address"
    address.write_text(f"https://localhost:{web_service.port}/services/hunter2\n")
    address.chmod(0o600)
    values = {"url_file": str(address), "ca": str(authority.certificate)}
    webhook = Webhook.model_validate(values)
    route = WebhookRoute(webhook, "node")

    route.send(message())
    assert len(web_service.received) == 1
    assert str(route) == f"webhook of {address}"

    assert config.alerts is not None
    alerts = config.alerts.model_copy(update={"mail": None, "webhook": webhook})
    other = config.model_copy(update={"alerts": alerts})
    assert "hunter2" not in str(public(other))
    assert list(wrong_files(other)) == []

    address.write_text("hooks.chat.example/services/hunter2")
    (line,) = wrong_files(other)
    assert line.startswith(f"alerts.webhook.url_file: found {address}")
    assert "it holds no web address; allowed: https://host/path" in line
    assert "hunter2" not in line
    with pytest.raises(RouteError, match="no web address") as caught:
        route.send(message())
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"url": "https://h/x", "url_file": "/etc/pleura/address"}])
def test_a_webhook_needs_exactly_one_address(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="`url` or `url_file`, one of them"):
        Webhook.model_validate(values)


def test_a_route_that_breaks_stops_no_other(
    small: Ledger, config: Config, web_service: WebService
) -> None:
    class Broken:
        name = "mail"

        def send(self, message: AlarmMessage) -> None:
            raise LookupError

    routes = {"mail": Broken(), "webhook": routes_of(config)["webhook"]}
    small.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], routes.keys(), "a", 60)
    assert AlertSender(routes, small).turn(_STOP) == 1
    assert len(web_service.received) == 1


def test_an_accepted_mail_is_sent_once_despite_a_later_error(
    config: Config, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_server, "farewell", "421 too busy")
    routes_of(config)["mail"].send(message())
    assert len(mail_server.received) == 1


def test_the_end_of_a_trouble_waits_for_its_beginning(ledger: Ledger, clock: Clock) -> None:
    away, full = Alarm("outage:pacs", "outage", "pacs", "x"), Alarm("disk:a", "disk", "a", "x")
    ledger.alarms.note([away], ["mail"], "a", 0)
    (began,) = ledger.alarms.claim("me", ["mail"], 300)
    ledger.alarms.retry_later(began, 600)
    # Set the clock back and end the trouble.
    clock.now -= 30
    ledger.alarms.note([full], ["mail"], "a", 0)

    (other,) = ledger.alarms.claim("me", ["mail"], 300)
    assert other.facts["kind"] == "disk"
    ledger.alarms.mark_sent(other)
    clock.now += 700
    assert ledger.alarms.claim("me", ["mail"], 300) == [replace(began, failures=1)]
    assert ledger.alarms.claim("me", ["mail"], 300) == []
    ledger.alarms.mark_sent(began)
    (over,) = ledger.alarms.claim("me", ["mail"], 300)
    assert (over.facts["kind"], over.facts["event"]) == ("outage", "over")


def test_messages_for_another_hosts_route_are_kept_for_a_day(small: Ledger, clock: Clock) -> None:
    small.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], ["webhook"], "a", 60)
    assert small.alarms.claim("me", ["mail"], 300) == []
    assert small.alarms.owed() == 1
    clock.now += 86401
    assert small.alarms.claim("me", ["mail"], 300) == []
    assert small.alarms.owed() == 0


def test_a_reload_changes_the_routes(
    small: Ledger, config: Config, tmp_path: Path, web_service: WebService
) -> None:
    small.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], ["webhook"], "a", 60)
    spool = Spool(tmp_path / "spool")
    spool.claim(small.spool_identity)
    deliverer = Deliverer(config.model_copy(update={"alerts": None}), small, spool)
    deliverer.start()

    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(RefusedError, match=r"alerts\.webhook\.token_file.*chmod 0640"):
        deliverer.check(config)
    (tmp_path / "secret").chmod(0o600)
    deliverer.check(config)()
    wait_until("the webhook has the message", lambda: web_service.received)

    # Unchanged settings are not checked again: a lost file must not block another change.
    (tmp_path / "secret").unlink()
    deliverer.check(config.model_copy(update={"report_absent": True}))()
    deliverer.stop()


def test_new_routes_log_their_own_failure(
    small: Ledger,
    config: Config,
    web_service: WebService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A correction that does not work must be visible, although the route already failed before."""
    small.alarms.note([Alarm("outage:pacs", "outage", "pacs", "x")], ["webhook"], "a", 60)
    sender = AlertSender(routes_of(config), small, Backoff(first_s=0, longest_s=0))
    monkeypatch.setattr(web_service, "status", 500)
    for _ in range(2):
        sender.turn(threading.Event())
    assert caplog.text.count("messages wait; retrying") == 1
    sender.take(routes_of(config))
    sender.turn(threading.Event())
    assert caplog.text.count("messages wait; retrying") == 2


def test_the_command_sends_a_trial_message(
    config: Config, tmp_path: Path, mail_server: MailServer, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pleura.yaml"
    shown = config.model_dump(mode="json", include={"alerts", "spool", "host"})
    file.write_text(json.dumps(shown))
    (tmp_path / "secret").chmod(0o644)
    assert main(["config", "check", "-c", str(file)]) == 2
    assert "chmod 0640" in capsys.readouterr().err
    (tmp_path / "secret").chmod(0o600)
    assert main(["config", "check", "-c", str(file)]) == 0
    capsys.readouterr()

    assert main(["alerts", "test", "-c", str(file)]) == 0
    assert capsys.readouterr().out.count("took the trial message") == 2
    assert "a trial message" in mail_server.received[0].mail["Subject"]
