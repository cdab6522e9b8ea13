"""Access to the page: without a login nothing is shown, the role `look` cannot act, and no other
site can make a person act.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from daemon.web.app import doors
from daemon.web.passwords import Passwords
from daemon.web.sessions import Access
from daemon.web.single_sign_on import SingleSignOn
from daemon.web.turn import BusyError
from tests.web.site import ORIGIN, Site, Visitor, users

HOSTILE = "<b onload=x>'\"&"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page with one image for each end state, from a sender with a hostile AE title."""
    site = Site(tmp_path_factory.mktemp("site"), users=users())
    for number in range(1, 4):
        site.receive(f"1.2.{number}", HOSTILE)
    made = {"SC": b"overlay"}
    site.end("analysed", made, probability=0.91, positive=True, study_instance_uid="1.2.9")
    site.end("failed", reason="analysis_error", detail="<script>alert(1)</script>")
    site.end("not_analysed", reason="<i>odd</i>")
    yield site
    site.close()


def paths(site: Site) -> list[tuple[str, str, Access]]:
    """Every route of the page: (method, path with an existing number, access)."""
    found = doors(site.spool, SingleSignOn(None))
    return [(each.method, re.sub(r"{.*?}", "1", each.path), each.access) for each in found]


class Elements(HTMLParser):
    """The elements of a page: tag, and names of its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, set[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name for name, _ in attrs}))


def test_without_a_login_no_route_shows_anything(site: Site) -> None:
    visitor = Visitor(site)
    secrets = ("1.2.1", "XRAY1", "pacs", "onload", "analysis")
    walked = [*paths(site), ("GET", "/metrics", Access.LOOK), ("GET", "/none", Access.LOOK)]

    for method, path, access in walked:
        response = visitor.ask(method, path)
        assert not [word for word in secrets if word in response.text], path
        if access > Access.OPEN:
            assert response.status_code in (303, 401, 403, 404), (method, path)
            assert response.headers.get("location", "/login").startswith("/login")


def test_the_role_look_sees_every_page_and_cannot_act(site: Site) -> None:
    looker = Visitor(site)
    assert looker.log_in("looker").status_code == 303
    for path in ("/", "/live", "/images", "/images/1", "/model", "/runbook", "/try"):
        assert looker.get(path).status_code == 200, path

    before = site.view.counts()
    form = {"token": looker.token("/"), "act": "retry-images"}
    assert looker.post("/acts", form).status_code == 403
    assert site.view.counts() == before
    assert "Retry" not in looker.get("/").text


def test_an_act_needs_the_token_of_its_session_and_our_own_page(site: Site) -> None:
    actor = Visitor(site)
    other = Visitor(site)
    actor.log_in("actor")
    other.log_in("looker")
    before = site.view.counts()
    own = actor.token("/")
    foreign = other.token("/")

    for token in ("", "x", foreign):
        response = actor.post("/acts", {"token": token, "act": "retry-images"})
        assert response.status_code == 403, token
    for header in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
    ):
        form = {"token": own, "act": "retry-images"}
        assert actor.post("/acts", form, headers=header).status_code == 403, header
    assert actor.get("/acts").status_code == 405
    assert site.view.counts() == before

    # No form of the page contains these.
    for form in ({"act": "drop"}, {"act": "try-now", "destination": "<x>"}, {"act": "send-again"}):
        assert actor.post("/acts", form | {"token": own}).status_code == 400


def test_a_login_needs_the_token_of_its_form(site: Site) -> None:
    visitor = Visitor(site)
    form = {"token": "x", "name": "actor", "password": "y", "next": "/"}
    assert visitor.post("/login", form).status_code == 403
    response = visitor.post("/login", form | {"token": visitor.token("/login")})
    assert response.status_code == 401
    assert "pleura=" not in response.headers.get("set-cookie", "")


@pytest.mark.parametrize(
    "to",
    [
        "//evil.example/",
        "https://evil.example/",
        "/\\evil",
        "evil",
        "/\t/evil.example/",
        "//[x",
        "/\t/[x",
    ],
)
def test_a_login_never_redirects_to_another_site(site: Site, to: str) -> None:
    visitor = Visitor(site)
    shown = visitor.get("/login", params={"next": to})
    assert shown.status_code == 200
    assert f'value="{to}"' not in shown.text

    token = visitor.token("/login")
    form = {"token": token, "name": "looker", "password": "a long enough one", "next": to}
    assert visitor.post("/login", form).headers["location"] == "/"


def test_text_from_peers_is_escaped(site: Site) -> None:
    visitor = Visitor(site)
    visitor.log_in("looker")
    hostile = {"sender": "<script>alert(2)</script>", "uid": '"><img src=x onerror=y>'}

    pages = [
        visitor.get("/"),
        visitor.get("/images"),
        visitor.get("/images", params=hostile),
        visitor.get("/images/2"),
        visitor.get("/images/3"),
    ]

    for page in pages:
        elements = Elements(page.text)
        assert not {"b", "i"} & {tag for tag, _ in elements.found}
        assert not [name for _, names in elements.found for name in names if name[:2] == "on"]
        assert all("src" in names for tag, names in elements.found if tag == "script")

    assert "&lt;b onload=x&gt;" in pages[1].text


def test_every_answer_forbids_what_a_page_does_not_need(site: Site) -> None:
    for path in ("/login", "/", "/static/style.css", "/none", "/images/1/picture"):
        headers = Visitor(site).get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "strict-origin"


def test_no_page_has_inline_script_or_style(site: Site) -> None:
    visitor = Visitor(site)
    visitor.log_in("actor")
    for path in ("/", "/images", "/images/1", "/model", "/try"):
        elements = Elements(visitor.get(path).text)
        assert "style" not in {tag for tag, _ in elements.found}, path
        assert not [tag for tag, names in elements.found if "style" in names], path


def test_the_cookie_is_not_sent_from_other_sites_and_ends_with_a_logout(site: Site) -> None:
    visitor = Visitor(site)
    said = visitor.log_in("looker").headers.get_list("set-cookie")
    cookie = next(each for each in said if each.startswith("pleura="))
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie.replace("Strict", "strict")

    visitor.post("/logout", {"token": visitor.token("/")}, headers={"origin": ORIGIN})
    assert visitor.get("/").status_code == 303


def test_after_failed_logins_even_a_right_password_waits(site: Site) -> None:
    visitor = Visitor(site, "10.9.9.9")
    for _ in range(5):
        assert visitor.log_in("actor", "wrong").status_code == 401
    response = visitor.log_in("actor")
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert Visitor(site, "10.9.9.8").log_in("actor").status_code == 303


def test_logins_at_the_same_time_are_limited_as_those_in_sequence(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[int] = []
    statuses: list[int] = []

    def log_in() -> int:
        return Visitor(site, "10.9.9.7").log_in("actor", "wrong").status_code

    def verify(*_: object) -> bool:
        # The next login starts while this one is being verified.
        verified.append(1)
        if len(verified) < 8:
            statuses.append(log_in())
        return False

    monkeypatch.setattr(site.node.passwords, "is_right", verify)
    assert log_in() == 401
    assert len(verified) == 5
    assert sorted(statuses) == [401] * 4 + [429]


def test_a_login_turned_away_for_too_many_waiting_passwords_is_not_a_failed_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    passwords = Passwords({"ada": "hash"}, lambda *_: release.wait(60.0))
    answers: list[bool] = []
    turned_away: list[bool] = []

    def verify() -> None:
        try:
            answers.append(passwords.is_right("ada", "x"))
        except BusyError:
            turned_away.append(True)

    threads = [threading.Thread(target=verify) for _ in range(10)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30.0
    while len(turned_away) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)

    monkeypatch.setattr(site.node, "passwords", passwords)
    assert len(turned_away) == 7
    visitor = Visitor(site, "10.9.9.6")
    for _ in range(6):
        response = visitor.log_in("actor")
        assert (response.status_code, response.headers["retry-after"]) == (429, "2")

    release.set()
    for thread in threads:
        thread.join()
    assert answers == [True] * 3
    monkeypatch.undo()
    assert visitor.log_in("actor").status_code == 303


def test_logins_acts_and_searches_are_audited(tmp_path: Path) -> None:
    site = Site(tmp_path, users=users())
    site.receive("1.2.1")
    site.end("failed", reason="analysis_error")
    visitor = Visitor(site)
    visitor.log_in("actor", "wrong")
    visitor.log_in("actor")
    visitor.get("/images", params={"accession": "A-4711"})
    visitor.post("/acts", {"token": visitor.token("/"), "act": "retry-images"})

    told = [(event, facts) for event, facts in site.audited() if event != "received"]
    assert [event for event, _ in told] == ["login_failed", "login", "query", "command"]
    assert {facts["by"] for _, facts in told} == {"actor"}
    assert "A-4711" not in str(told)
    assert site.view.counts()["instances"]["received"] == 1
    site.close()


def test_without_users_this_machine_sees_images_but_no_pictures(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.receive("1.2.1")
    visitor = Visitor(site)
    assert visitor.get("/").status_code == 200
    assert visitor.get("/images/1").status_code == 200
    for path in ("/images/1/picture", "/objects/1", "/try"):
        assert visitor.get(path).headers["location"].startswith("/login"), path

    # The name of another site, which resolves to this machine (DNS rebinding).
    rebound = visitor.get("/", headers={"host": "evil.example"})
    assert rebound.status_code == 421
    site.close()


def test_health_checks_need_no_login(site: Site) -> None:
    assert Visitor(site).ask("GET", "/healthz").json()["ok"] is True
    assert Visitor(site).ask("GET", "/readyz").status_code in (200, 503)
