"""Logins by OpenID Connect with a provider in a separate process, over HTTPS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from daemon.config import Config, Oidc
from daemon.tls import TlsError
from daemon.web.provider import LoginRequest, Provider, RefusedError
from daemon.web.single_sign_on import PendingLogins
from tests.web.site import ORIGIN, Site, Visitor, users
from tools.peers.certificates import Authority
from tools.peers.identity_provider import SECRET, Running


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with Running(authority, authority.issue("provider")) as running:
        yield running


@pytest.fixture(autouse=True)
def is_right_again(provider: Running) -> Iterator[None]:
    yield
    provider.be_faulty()


def settings(provider: Running, folder: Path, **more: Any) -> dict[str, Any]:
    secret = folder / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    return {
        "issuer": provider.issuer,
        "client_id": "pleura",
        "client_secret_file": str(secret),
        "page_url": ORIGIN,
        "ca": str(provider.ca),
        **more,
    }


@pytest.fixture
def site(provider: Running, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, users=users(), oidc=settings(provider, tmp_path))
    yield site
    site.close()


def answered(provider: Running, visitor: Visitor, to: str = "/") -> dict[str, str]:
    """Log in at the provider. Returns the query of its redirect back to the page."""
    begun = visitor.get("/login/oidc", params={"next": to})
    assert begun.status_code == 303, begun.text
    with provider.browser() as browser:
        back = browser.get(begun.headers["location"])
    assert back.status_code == 302, back.text
    return dict(parse_qsl(urlsplit(back.headers["location"]).query))


def came_back(visitor: Visitor, answer: dict[str, str]) -> httpx.Response:
    return visitor.get("/login/oidc/answer", params=answer)


def logged_in(provider: Running, visitor: Visitor) -> httpx.Response:
    return came_back(visitor, answered(provider, visitor))


def told(site: Site) -> list[tuple[str, str]]:
    """The logins and acts in the audit trail: (event, person)."""
    return [(event, facts["by"]) for event, facts in site.audited() if "by" in facts]


def test_a_person_logs_in_and_acts_under_the_same_limits(site: Site, provider: Running) -> None:
    site.receive("1.2.1")
    site.end("failed", reason="analysis_error")
    visitor = Visitor(site)
    assert "/login/oidc?next=/images" in visitor.get("/login?next=/images").text

    answer = answered(provider, visitor, "/images")
    response = came_back(visitor, answer)
    assert response.status_code == 200
    # Not an HTTP redirect: the browser would count it as coming from the provider's site, and not
    # send the SameSite=Strict cookie.
    assert 'http-equiv="refresh" content="0;url=/images"' in response.text
    cookies = response.headers.get_list("set-cookie")
    assert any(each.startswith("pleura=") and "SameSite=strict" in each for each in cookies)

    page = visitor.get("/")
    assert "oidc:ada" in page.text
    form = {"token": visitor.token("/"), "act": "retry-images"}
    assert visitor.post("/acts", form | {"token": "x"}).status_code == 403
    assert visitor.post("/acts", form).status_code == 303

    visitor.post("/logout", {"token": visitor.token("/")}, headers={"origin": ORIGIN})
    assert visitor.get("/").status_code == 303
    assert told(site) == [("login", "oidc:ada"), ("command", "oidc:ada"), ("logout", "oidc:ada")]


@pytest.mark.parametrize(
    ("claims", "more", "may"),
    [
        ({"roles": "pleura-look"}, {}, 403),
        ({"roles": ["pleura-look", "pleura-act"]}, {}, 303),
        ({"realm_access": {"roles": ["boss"]}}, {"role_claim": "realm_access.roles"}, 303),
        ({"https://h.example/r": "boss"}, {"role_claim": "https://h.example/r"}, 303),
        ({"groups": ["all"]}, {"role_claim": "groups", "look": ["all"], "act": []}, 403),
    ],
)
def test_the_claim_decides_who_looks_and_who_acts(
    claims: dict[str, Any], more: dict[str, Any], may: int, provider: Running, tmp_path: Path
) -> None:
    site = Site(
        tmp_path, oidc=settings(provider, tmp_path, **{"act": ["pleura-act", "boss"]} | more)
    )
    visitor = Visitor(site)
    provider.be_faulty(claims=claims)
    assert logged_in(provider, visitor).status_code == 200
    form = {"token": visitor.token("/"), "act": "retry-images"}
    assert visitor.post("/acts", form).status_code == may
    site.close()


# The provider's fault; the status of our answer; words in the log; the person in the audit trail.
FAULTS = {
    "signature": ({"signature": "foreign"}, 403, "Signature verification failed", "oidc"),
    "unsigned": ({"signature": "none"}, 403, "InvalidAlgorithmError", "oidc"),
    "signed with the client's secret": ({"signature": "secret"}, 403, "InvalidAlgorithm", "oidc"),
    "audience": ({"claims": {"aud": "another"}}, 403, "Audience doesn't match", "oidc"),
    "audiences": ({"claims": {"aud": ["pleura", "x"]}}, 403, "authorized party (azp)", "oidc"),
    "party": ({"claims": {"azp": "another"}}, 403, "found 'another'", "oidc"),
    "nonce": ({"claims": {"nonce": "another"}}, 403, "nonce is not that of this login", "oidc:ada"),
    "no nonce": ({"claims": {"nonce": None}}, 403, "nonce is not that of this login", "oidc:ada"),
    "expired": ({"claims": {"exp": 1}}, 403, "ExpiredSignatureError", "oidc"),
    "no expiry": ({"claims": {"exp": None}}, 403, 'missing the "exp" claim', "oidc"),
    "issuer": ({"claims": {"iss": "https://evil.example"}}, 400, "Invalid issuer", "oidc"),
    "mix-up": ({"answer": {"iss": "https://evil.example"}}, 400, "found 'https://evil", "oidc"),
    "no issuer": ({"answer": {"iss": ""}}, 400, "the answer's issuer (iss) is None", "oidc"),
    "no role": ({"claims": {"roles": None}}, 403, "the claim 'roles' is absent", "oidc:ada"),
    "other role": ({"claims": {"roles": ["x"]}}, 403, "wanted one of pleura-look", "oidc:ada"),
    "odd role": ({"claims": {"roles": {"a": 1}}}, 403, "assign the role", "oidc:ada"),
    "denied": ({"answer": {"code": "", "error": "access_denied"}}, 403, "'access_denied'", "oidc"),
    "hostile": ({"answer": {"code": "", "error": "<i>\n\x1b"}}, 403, "\\\\x0a\\\\x1b", "oidc"),
    "stolen code": ({"answer": {"code": "stolen"}}, 403, "HTTP 400, 'invalid_grant'", "oidc"),
    "broken": ({"token_status": 500}, 502, "HTTP 500, 'server_error'", None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_answer_of_the_provider_opens_no_session(
    fault: str, site: Site, provider: Running, caplog: pytest.LogCaptureFixture
) -> None:
    faults, status, words, name = FAULTS[fault]
    visitor = Visitor(site)
    provider.be_faulty(**faults)
    response = logged_in(provider, visitor)
    assert response.status_code == status
    assert 'role="alert"' in response.text
    assert not [each for each in response.headers.get_list("set-cookie") if "pleura=" in each]
    assert visitor.get("/").status_code == 303

    line = next(each for each in caplog.messages if "by OIDC" in each)
    assert words.replace("found ", "") in line
    assert "\n" not in line
    assert told(site) == ([("login_failed", name)] if name else [])


@pytest.mark.parametrize(
    ("document", "status", "words"),
    [
        ({"issuer": "https://evil.example"}, 400, "found the issuer 'https://evil.example'"),
        ({"token_endpoint": "http://localhost/token"}, 502, "token_endpoint is 'http://localhost"),
        ({"code_challenge_methods_supported": ["plain"]}, 502, "switch PKCE on there"),
        ({"padding": "x" * 300_000}, 502, "more than 262144 bytes"),
    ],
)
def test_no_browser_is_sent_to_a_provider_with_a_wrong_document(
    document: dict[str, Any], status: int, words: str, site: Site, provider: Running,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    provider.be_faulty(document=document)
    assert Visitor(site).get("/login/oidc").status_code == status
    assert any(words in each for each in caplog.messages)


def test_a_state_is_valid_for_one_answer_in_one_browser(
    site: Site, provider: Running, caplog: pytest.LogCaptureFixture
) -> None:
    visitor = Visitor(site)
    thief = Visitor(site)
    answer = answered(provider, visitor)
    thief.get("/login/oidc")
    assert came_back(thief, answer).status_code == 400
    assert "another browser began this login" in caplog.text
    # The thief's try has used the state up.
    assert came_back(visitor, answer).status_code == 400

    answer = answered(provider, visitor)
    assert came_back(visitor, answer).status_code == 200
    assert came_back(Visitor(site), answer).status_code == 400
    assert "the browser shows no cookie" in caplog.text
    visitor.get("/login/oidc")
    assert came_back(visitor, {**answer, "state": "invented"}).status_code == 400
    assert "already used or unknown" in caplog.text


def test_a_login_that_takes_too_long_has_ended() -> None:
    now = [0.0]
    pending = PendingLogins(lambda: now[0])
    state, _ = pending.begin("browser", "/", "10.0.0.1")
    late, _ = pending.begin("browser", "/", "10.0.0.1")
    now[0] = 599.0
    assert pending.take(state, "browser").to == "/"
    now[0] = 601.0
    with pytest.raises(RefusedError, match="longer than 600 s"):
        pending.take(late, "browser")


def test_many_logins_from_one_address_end_none_of_another_address() -> None:
    pending = PendingLogins()
    first, _ = pending.begin("browser", "/", "10.0.0.1")
    crowd = [pending.begin("browser", "/", "10.0.0.2")[0] for _ in range(501)]
    for state in crowd[:2]:
        with pytest.raises(RefusedError, match="already used or unknown"):
            pending.take(state, "browser")
    assert pending.take(first, "browser")
    assert pending.take(crowd[2], "browser")


def test_guessed_codes_are_slowed_down(site: Site, provider: Running) -> None:
    visitor = Visitor(site, "10.9.9.8")
    for _ in range(5):
        begun = visitor.get("/login/oidc")
        asked = dict(parse_qsl(urlsplit(begun.headers["location"]).query))
        answer = {"state": asked["state"], "code": "tried", "iss": provider.issuer}
        assert came_back(visitor, answer).status_code == 403
    assert came_back(visitor, answer).status_code == 429
    assert told(site) == [("login_failed", "oidc")] * 5


def test_an_answer_linked_from_another_site_is_not_a_failed_login(site: Site) -> None:
    visitor = Visitor(site, "10.9.9.7")
    for _ in range(6):
        assert came_back(visitor, {"state": "x", "code": "y"}).status_code == 400
    assert told(site) == []
    assert visitor.log_in("actor").status_code == 303


def test_failed_answers_are_slowed_down(site: Site) -> None:
    visitor = Visitor(site, "10.9.9.9")
    visitor.get("/login/oidc")
    for _ in range(5):
        assert came_back(visitor, {"state": "x", "code": "y"}).status_code == 400
    response = came_back(visitor, {"state": "x", "code": "y"})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


def test_a_provider_with_an_untrusted_certificate_is_not_used(
    provider: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Authority(tmp_path / "other").certificate
    site = Site(tmp_path, oidc=settings(provider, tmp_path, ca=str(other)))
    assert Visitor(site).get("/login/oidc").status_code == 502
    assert "certificate is not trusted" in caplog.text
    assert "web.oidc.ca" in caplog.text
    site.close()


def test_local_users_can_log_in_while_the_provider_is_down(
    provider: Running, tmp_path: Path
) -> None:
    away = settings(provider, tmp_path, issuer="https://localhost:9/staff")
    site = Site(tmp_path, users=users(), oidc=away)
    visitor = Visitor(site)
    assert visitor.get("/login/oidc").status_code == 502
    assert visitor.log_in("actor").status_code == 303
    site.close()


def test_a_limited_number_of_logins_waits_for_the_provider(
    provider: Running, tmp_path: Path
) -> None:
    asked = Provider(Oidc.model_validate(settings(provider, tmp_path)))
    _, request = PendingLogins().begin("browser", "/", "10.0.0.1")
    with asked._turn(), asked._turn(), asked._turn(), asked._turn():  # noqa: SIM117
        with pytest.raises(RefusedError, match="4 other logins wait"):
            asked.login_url("state", request)
    assert asked.login_url("state", request).startswith(f"{provider.origin}/authorize?")


def test_a_provider_that_sends_its_headers_slowly_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.web.provider._PATIENCE_S", 0.5)
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)

    def drip(listening: socket.socket) -> None:
        plain, _ = listening.accept()
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as peer:
            for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 40:
                peer.sendall(bytes([byte]))
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        dripping = threading.Thread(target=drip, args=(listening,))
        dripping.start()
        oidc = {
            "issuer": f"https://localhost:{listening.getsockname()[1]}",
            "client_id": "pleura",
            "page_url": ORIGIN,
            "ca": str(authority.certificate),
        }
        request = LoginRequest("nonce", "verifier", "challenge")
        with pytest.raises(RefusedError, match=r"not whole within 0\.5 s"):
            Provider(Oidc.model_validate(oidc)).login_url("state", request)
        dripping.join()


def test_a_name_server_that_does_not_answer_is_given_up_in_time(
    provider: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Provider(Oidc.model_validate(settings(provider, tmp_path)))
    monkeypatch.setattr("daemon.web.provider._PATIENCE_S", 0.2)
    answered = threading.Event()

    def away(*_: Any, **__: Any) -> list[Any]:
        answered.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    began = time.monotonic()
    with pytest.raises(RefusedError, match=r"not whole within 0\.2 s"):
        asked.login_url("state", LoginRequest("nonce", "verifier", "challenge"))
    answered.set()
    assert time.monotonic() - began < 15


def test_an_empty_secret_is_reported(provider: Running, tmp_path: Path) -> None:
    more = settings(provider, tmp_path)
    Path(more["client_secret_file"]).write_text("\n")
    asked = Provider(Oidc.model_validate(more))
    with pytest.raises(RefusedError, match=r"client_secret_file: .* is empty"):
        asked.person({"code": "x", "iss": provider.issuer}, LoginRequest("n", "v", "c"))


def test_without_a_provider_in_the_settings_there_is_no_login_by_oidc(tmp_path: Path) -> None:
    site = Site(tmp_path, users=users())
    visitor = Visitor(site)
    assert "/login/oidc" not in visitor.get("/login").text
    for path in ("/login/oidc", "/login/oidc/answer"):
        assert visitor.get(path).status_code == 404
    site.close()


def test_a_page_with_only_a_provider_shows_nothing_before_a_login(
    provider: Running, tmp_path: Path
) -> None:
    site = Site(tmp_path, oidc=settings(provider, tmp_path))
    visitor = Visitor(site)
    for path in ("/", "/images", "/metrics"):
        assert visitor.get(path).status_code in (303, 401, 403), path
    assert 'name="password"' not in visitor.get("/login").text
    site.close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"issuer": "http://login.example"}, "https://host/path"),
        ({"issuer": "https://login.example/?x=1"}, "https://host/path"),
        ({"page_url": "http://pleura.example"}, "https://host or"),
        ({"page_url": "https://pleura.example/page"}, "https://host or"),
        ({"scopes": ["profile"]}, "hold `openid`"),
        ({"look": [], "act": []}, "otherwise nobody can log in"),
        ({"client_secret": "x"}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], words: str) -> None:
    right = {
        "issuer": "https://login.example",
        "client_id": "pleura",
        "page_url": "https://pleura.example",
    }
    Config.model_validate({"web": {"oidc": right}})
    with pytest.raises(ValueError, match=words):
        Config.model_validate({"web": {"oidc": right | wrong}})


def test_a_secret_that_others_can_read_stops_the_page(provider: Running, tmp_path: Path) -> None:
    more = settings(provider, tmp_path)
    Path(more["client_secret_file"]).chmod(0o644)
    with pytest.raises(TlsError, match=r"web\.oidc\.client_secret_file: .* mode 0644"):
        Provider(Oidc.model_validate(more))


def test_the_clocks_may_differ_by_a_minute(site: Site, provider: Running) -> None:
    visitor = Visitor(site)
    provider.be_faulty(claims={"exp": int(time.time()) - 30})
    assert logged_in(provider, visitor).status_code == 200
