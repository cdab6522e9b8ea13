"""Plausible but wrong settings are refused with words that lead to the right value.

Each case was once accepted, or refused with words that did not help.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from daemon import config
from daemon.config import Config, ConfigError
from daemon.config.terms import doubtful_body_parts


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "pleura.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def error_for(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


@pytest.mark.parametrize(
    "port", ["0104", "yes", "1:44", "true", "0x68", "1_04", "'104'", "104.0", "1e2", "on", "~"]
)
def test_a_port_is_a_plain_decimal_number(tmp_path: Path, port: str) -> None:
    assert "port: found" in error_for(tmp_path, f"port: {port}")


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_an_empty_file_is_not_taken_for_defaults(tmp_path: Path, text: str) -> None:
    """A disk that is full at an edit leaves such a file."""
    assert "is empty; settings wanted" in error_for(tmp_path, text)
    assert load(tmp_path, "# every key at its default\n").port == 11112


def test_numbers_keep_their_plain_forms(tmp_path: Path) -> None:
    settings = load(tmp_path, "port: 104\nretention: {keep_days: 0.5, keep_failed_days: 7}")
    assert (settings.port, settings.retention.keep_days) == (104, 0.5)
    assert settings.retention.keep_failed_days == 7


@pytest.mark.parametrize("title", ["NO", "ON", "0123", "1:44", "2026-01-01", "yes"])
def test_a_title_that_only_yaml_1_1_would_convert_stays_text(tmp_path: Path, title: str) -> None:
    settings = load(tmp_path, f"ae_title: {title}")
    assert settings.ae_title == title
    assert load(tmp_path, config.show(settings)) == settings


@pytest.mark.parametrize("title", ["123", "true", "1e5", "1.5"])
def test_a_title_that_yaml_converts_is_refused_with_advice_to_quote_it(
    tmp_path: Path, title: str
) -> None:
    assert "quotes" in error_for(tmp_path, f"ae_title: {title}")
    assert load(tmp_path, f"ae_title: '{title}'").ae_title == title


@pytest.mark.parametrize(
    ("host", "word"),
    [
        ("010.000.004.011", "octal"),
        ("10.0.4.011", "octal"),
        ("10.0.4.999", "0 to 255"),
        ("10.0.4", "0 to 255"),
        ("0x0a.0.4.11", "host"),
        ("167773195", "quotes"),
        ("'167773195'", "host"),
        ("10.0.4.11:104", "port has its own key"),
        ("10.0.4.0/24", "list each system"),
        ("'*'", "null admits any"),
        ("0.0.0.0", "one system"),
        ("239.1.1.1", "one system"),
        ("pacs..local", "host"),
        ("-pacs", "host"),
    ],
)
def test_a_peers_host_is_one_plain_address_or_name(tmp_path: Path, host: str, word: str) -> None:
    assert word in error_for(tmp_path, f"peers: [{{ae_title: A, host: {host}}}]")


@pytest.mark.parametrize("host", ["10.0.4.11", "pacs.local", "pacs.local.", "::1", "fe80::1", "n1"])
def test_plain_hosts_are_accepted(tmp_path: Path, host: str) -> None:
    settings = load(tmp_path, f"peers: [{{ae_title: A, host: '{host}'}}]")
    assert settings.peers[0].host == host


@pytest.mark.parametrize("title", ["'*'", "XRAY*"])
def test_a_peer_cannot_be_a_wildcard(tmp_path: Path, title: str) -> None:
    assert "wildcard" in error_for(tmp_path, f"peers: [{{ae_title: {title}}}]")


@pytest.mark.parametrize(
    "setting",
    [
        "spool: spool",
        "spool: ~/spool",
        "spool: /home/~/spool",
        "spool: ./spool",
        "inbox: inbox",
        "model: models/mine",
        "model: ~/mine",
        "destinations: [{name: a, folder: outbox}]",
    ],
)
def test_a_path_must_be_absolute(tmp_path: Path, setting: str) -> None:
    assert "absolute path" in error_for(tmp_path, setting)


@pytest.mark.parametrize("path", ["/dev/shm/spool", "/run/pleura", "/proc/x", "/var/run/pleura"])
def test_the_spool_and_the_ledger_must_not_lie_where_a_restart_removes_them(
    tmp_path: Path, path: str
) -> None:
    assert "restart" in error_for(tmp_path, f"spool: {path}")
    assert "restart" in error_for(tmp_path, f"ledger: 'sqlite:///{path}/ledger.db'")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("sqlite:///ledger.db", "four slashes"),
        ("sqlite:///var/lib/pleura/ledger.db", "four slashes"),
        ("sqlite:///~/ledger.db", "four slashes"),
        ("sqlite:////home/~/ledger.db", "absolute"),
        ("sqlite:///:memory:", "four slashes"),
        ("sqlite+aiosqlite:////x/ledger.db", "postgresql+psycopg"),
        ("postgresql+psycopg2://pleura@db/pleura", "postgresql+psycopg"),
        ("postgresql+asyncpg://pleura@db/pleura", "postgresql+psycopg"),
    ],
)
def test_a_ledger_url_that_would_mean_something_else_is_refused(
    tmp_path: Path, url: str, word: str
) -> None:
    assert word in error_for(tmp_path, f"ledger: '{url}'")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_common_postgresql_urls_select_the_installed_driver(tmp_path: Path, scheme: str) -> None:
    settings = load(tmp_path, f"ledger: '{scheme}://pleura:s%40cret@db:5433/pleura'")
    assert settings.ledger == "postgresql+psycopg://pleura:s%40cret@db:5433/pleura"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://pleura:hunter2@db/pleura",
        "postgresql+psycopg://db/pleura?user=pleura&password=hunter2",
        "postgresql+psycopg2://pleura:hunter2@db/pleura",
        "postgres:/pleura:hunter2@db/pleura",
    ],
)
def test_no_password_is_shown(tmp_path: Path, url: str) -> None:
    try:
        shown = config.show(load(tmp_path, f"ledger: '{url}'"))
    except ConfigError as error:
        shown = str(error)
    assert "hunter2" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.0.1.1", "'::1'", socket.gethostname()]
)
def test_a_destination_cannot_be_the_node_itself(tmp_path: Path, host: str) -> None:
    destination = f"{{name: a, ae_title: PLEURA, host: {host}, port: 11112}}"
    assert "this node" in error_for(tmp_path, f"destinations: [{destination}]")


def test_another_port_of_this_host_may_be_an_archive(tmp_path: Path) -> None:
    assert load(
        tmp_path, "destinations: [{name: a, ae_title: ORTHANC, host: 127.0.0.1, port: 4242}]"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ae_title: A, host: pacs, port: 104", "ae_title: A, host: pacs, port: 104"),
        ("ae_title: A, host: pacs, port: 104", "ae_title: A, host: PACS., port: 104"),
        ("ae_title: A, host: localhost, port: 104", "ae_title: A, host: 127.0.0.1, port: 104"),
        ("folder: /out", "folder: /out/"),
        ("folder: /out", "folder: /a/../out"),
    ],
)
def test_one_archive_under_two_names_is_refused(tmp_path: Path, first: str, second: str) -> None:
    found = error_for(tmp_path, f"destinations: [{{name: a, {first}}}, {{name: b, {second}}}]")
    assert "destinations[1]: found the same place as destinations[0]" in found


def test_two_titles_behind_one_address_are_two_archives(tmp_path: Path) -> None:
    titles = ("ae_title: A, host: pacs, port: 104", "ae_title: B, host: pacs, port: 104")
    text = f"destinations: [{{name: a, {titles[0]}}}, {{name: b, {titles[1]}}}]"
    assert len(load(tmp_path, text).destinations) == 2


@pytest.mark.parametrize(
    "text",
    [
        "inbox: /var/lib/pleura/spool",
        "inbox: /var/lib/pleura/spool/in",
        "inbox: /box\ndestinations: [{name: a, folder: /box}]",
        "destinations: [{name: a, folder: /var/lib/pleura/spool/out}]",
    ],
)
def test_overlapping_folders_are_refused(tmp_path: Path, text: str) -> None:
    assert "overlaps" in error_for(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ledger", "ledger: sqlite:////box/ledger.db"),
        ("model", "model: /box/model"),
        ("shadow.model", "shadow: {model: /box/candidate}"),
        ("audit.file", "audit: {file: /box/below/audit.log}"),
        ("tls.key", "tls: {client: none, certificate: /etc/node.pem, key: /box/node.key}"),
        (
            "destinations[0].tls.ca",
            "destinations: [{name: a, ae_title: A, host: pacs, port: 104, tls: {ca: /box/ca.pem}}]",
        ),
    ],
)
def test_an_inbox_that_holds_a_file_of_the_node_is_refused(
    tmp_path: Path, key: str, text: str
) -> None:
    # The inbox would take the node's own file for an image and remove it.
    assert f"inbox: found /box, where {key} lies" in error_for(tmp_path, f"inbox: /box\n{text}")


def test_settings_in_the_inbox_are_refused(tmp_path: Path) -> None:
    assert f"inbox: found {tmp_path}, where the settings" in error_for(
        tmp_path, f"inbox: {tmp_path}"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("audit: {file: /n/ledger.db}", "ledger: found /n/ledger.db, which is also audit.file"),
        ("audit: {file: /n/../n/ledger.db}", "ledger: found /n/ledger.db, which is also audit"),
        ("audit: {file: /n/ledger.db-wal}", "which is also the ledger's -wal"),
        ("audit: {file: /n/ledger.db-journal}", "which is also the ledger's -journal"),
        ("model: /n/m.zip\naudit: {file: /n/m.zip}", "model: found /n/m.zip, which is also audit"),
        (
            "audit: {file: /n/a.log}\nweb: {metrics_token_file: /n/a.log}",
            "audit.file: found /n/a.log, which is also web.metrics_token_file",
        ),
        (
            "alerts: {webhook: {url_file: /n/ledger.db-shm}}",
            "alerts.webhook.url_file: found /n/ledger.db-shm, which is also the ledger's -shm",
        ),
        ("audit: {file: /n/spool/audit.log}", "audit.file: found /n/spool/audit.log, which over"),
        ("audit: {file: /n/spool}", "audit.file: found /n/spool, which overlaps spool"),
        ("audit: {file: /n}", "audit.file: found /n, which overlaps spool"),
        (
            "audit: {file: /out}\ndestinations: [{name: a, folder: /out}]",
            "audit.file: found /out, which overlaps destinations[0].folder",
        ),
    ],
)
def test_a_file_that_the_node_writes_has_no_second_use(
    tmp_path: Path, text: str, words: str
) -> None:
    """The audit trail once appended its messages to the ledger's own file."""
    place = "ledger: sqlite:////n/ledger.db\nspool: /n/spool\n"
    assert words in error_for(tmp_path, place + text)


def test_audit_messages_do_not_go_into_the_settings(tmp_path: Path) -> None:
    link = tmp_path / "audit.log"
    link.symlink_to(tmp_path / "pleura.yaml")
    found = error_for(tmp_path, f"audit: {{file: {link}}}")
    assert f"which is also audit.file ({link})" in found


def test_files_that_the_node_only_reads_may_be_shared(tmp_path: Path) -> None:
    page = "web: {tls: {certificate: /etc/node.pem, key: /etc/node.pem}}"
    assert load(
        tmp_path,
        f"{page}\naudit: {{file: /n/a.log, certificate: /etc/node.pem, "
        "key: /etc/node.pem, repository: 'tls://a:6514'}",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 104", "did you mean 'port'?"),
        ("destination: []", "did you mean 'destinations'?"),
        ("admission: {view: [AP]}", "did you mean 'views'?"),
        ("destinations: [{name: a, folder: /x, reslts: [SC]}]", "did you mean 'results'?"),
        ("keep_days: 3", "it belongs under retention"),
        ("retention: {spool_reserve_mb: 3}", "it belongs at the top"),
        ("web: {oidc: {isuer: 'https://x'}}", "web.oidc.isuer: unknown key; did you mean 'issuer'"),
        ("alerts: {mail: {recipient: [a]}}", "did you mean 'recipients'?"),
        ("web: {users: [{name: a, rol: act}]}", "did you mean 'role'?"),
        ("recipients: [a]", "it belongs under alerts.mail"),
        ("destinations: [{name: a, folder: /x, host: h}]", "either an archive or a `folder`"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(tmp_path: Path, text: str, words: str) -> None:
    found = error_for(tmp_path, text)
    assert words in found
    assert str(config.commented_file()) in found
    assert config.commented_file().is_file()


@pytest.mark.parametrize(
    ("admission", "word"),
    [
        ("views: [LL]", "left lateral"),
        ("views: [AP, PS]", "AP, LLD, PA, RLD"),
        ("views: []", "at least 1"),
        ("body_parts: [CHST]", "did you mean CHEST?"),
        ("body_parts: [THORAXX]", "did you mean THORAX?"),
        ("body_parts: [CHEST, TORAKS]", "did you mean TORAX?"),
        ("body_parts: []", "at least 1"),
        ("modalities: [CX]", "CR, DX"),
        ("modalities: [CT]", "never analysed"),
        ("modalities: [DR]", "CR, DX"),
        ("modalities: []", "at least 1"),
    ],
)
def test_a_typo_in_admission_is_refused(tmp_path: Path, admission: str, word: str) -> None:
    assert word in error_for(tmp_path, f"admission: {{{admission}}}")


def test_a_sites_own_words_for_the_chest_are_accepted(tmp_path: Path) -> None:
    text = "admission: {body_parts: [CHEST, LUNG, TORAX, BRUSTKORB, HAND]}"
    terms = load(tmp_path, text).admission.body_parts
    assert terms == ("CHEST", "LUNG", "TORAX", "BRUSTKORB", "HAND")
    assert doubtful_body_parts(terms) == ["BRUSTKORB", "HAND"]


def test_a_password_hash_without_quotes_is_refused(tmp_path: Path) -> None:
    whole = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"
    error = error_for(tmp_path, f"web: {{users: [{{name: ada, password_hash: {whole}}}]}}")
    assert "put the whole hash in quotes" in error
    load(tmp_path, f'web: {{users: [{{name: ada, password_hash: "{whole}"}}]}}')


def test_invalid_yaml_is_reported_with_its_line(tmp_path: Path) -> None:
    error = error_for(tmp_path, "port: 104\nae_title: A\nport: 105")
    assert "line 3, column 1: the key 'port' is given twice; keep one of them" in error
    assert "line 3, column 1: expected" in error_for(tmp_path, "peers:\n  - {ae_title: A\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ae_title: A\nport: {{ port }}", "line 2, column 8: found a list or {...} in place of a"),
        ("? [a]\n: 1", "line 1, column 3: found a list or {...} in place of a key"),
        ("104: port", "line 1, column 1: the key '104' is not text; put it in quotes"),
        ("port: !!int abc", "line 1, column 7: the value cannot be read"),
        ("web: !!bool maybe", "line 1, column 6: the value cannot be read as bool"),
        ("port: !!timestamp now", "line 1, column 7: the value cannot be read as timestamp"),
        ("ae_title: &a {b: *a}", "line 1, column 11: found unconstructable recursive node"),
        ("peers: &a [*a]", "line 1, column 8: found unconstructable recursive node"),
        ("port: " + "1" * 5000, "line 1, column 7: the value cannot be read"),
        ("peers: " + "[" * 2000, "nested too deeply"),
        ("destinations: [{name: a, folder: /x, profile: [ohif]}]", "profile: found ['ohif']"),
    ],
)
def test_no_mistake_ends_in_a_traceback(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_for(tmp_path, text)


def test_only_a_key_can_be_left_out(tmp_path: Path) -> None:
    assert error_for(tmp_path, "host: null").endswith("or leave the key out")
    assert "keys and values below it: ae_title, host" in error_for(tmp_path, "peers: [null]")


def test_an_entry_may_share_keys_by_a_yaml_merge_key(tmp_path: Path) -> None:
    """For peers that have most keys in common."""
    peers = load(
        tmp_path,
        "peers:\n  - &room {ae_title: XRAY1, host: 10.0.0.1, priority: stat}\n"
        "  - {<<: *room, host: 10.0.0.2}\n",
    ).peers
    assert [(peer.ae_title, peer.host, peer.priority) for peer in peers] == [
        ("XRAY1", "10.0.0.1", "stat"),
        ("XRAY1", "10.0.0.2", "stat"),
    ]
    assert "given twice" in error_for(tmp_path, "peers:\n  - {<<: {ae_title: A, ae_title: B}}\n")


_MAIL = "host: h, user: u, sender: a@b.example, recipients: [a@b.example]"
_OIDC = "issuer: 'https://x', client_id: a, page_url: 'https://p'"


@pytest.mark.parametrize(
    "text",
    [
        f"alerts: {{mail: {{{_MAIL}, password_file: hunter2}}}}",
        "alerts: {webhook: {url: 'https://h/x', token_file: hunter2}}",
        "alerts: {webhook: {url: 'https://u:hunter2@h/x'}}",
        "alerts: {webhook: {url: 'https://h/x?token=hunter2 '}}",
        "alerts: [{webhook: {url: 'https://h/x?token=hunter2'}}]",
        "alerts: {mail: [password: hunter2]}",
        f"web: {{oidc: {{{_OIDC}, client_secret_file: hunter2}}}}",
        "web: {oidc: {issuer: 'https://u:hunter2@x', client_id: a, page_url: 'https://p'}}",
        "tls: {certificate: /c, key: /k, client: none, key_passphrase_file: hunter2}",
        "ledger_file: postgresql://pleura:hunter2@db/pleura",
    ],
)
def test_no_error_quotes_a_misplaced_secret(tmp_path: Path, text: str) -> None:
    assert "hunter2" not in error_for(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("admission:", "admission: found nothing (null); allowed: keys and values below it: mod"),
        ("peers:", "peers: found nothing (null); allowed: a list, each entry after a hyphen, with"),
        ("ae_title: NULL", "ae_title: found nothing (null); allowed: text"),
        ("peers: [XRAY1]", "peers[0]: found 'XRAY1'; allowed: keys and values below it: ae_"),
        (
            "destinations: {name: a}",
            "allowed: a list, each entry after a hyphen, with the keys name",
        ),
        ("web: on", "web: found 'on'; allowed: true, false, or keys and values below it"),
        ("destinations: [{name: a, ae_title: B, host: h, port: 104, tls: yes}]", "allowed: true"),
        ("limits: {associations: true}", "limits.associations: found True"),
        ("limits: {idle_s: 60s}", "limits.idle_s: found '60s'; allowed: a number, without quotes"),
        ("peers: [{ae_title: A, associations: true}]", "peers[0].associations: found True"),
        ("ae_title: 1.10", "put what stands there in quotes"),
        ("peers: [{ae_title: A}, {ae_title: A, priority: stat}]", "peers[1]: found the same peer"),
    ],
)
def test_errors_name_found_and_allowed_values_in_yaml_terms(
    tmp_path: Path, text: str, words: str
) -> None:
    assert words in error_for(tmp_path, text)


def test_a_wrong_entry_of_a_list_is_one_error(tmp_path: Path) -> None:
    error = error_for(tmp_path, "destinations: [{name: a, folder: /x, results: [seg]}]")
    assert len(error.splitlines()) == 1
    assert "destinations[0].results[0]: found 'seg'; allowed: 'SEG'" in error
