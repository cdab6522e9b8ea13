"""A reload of the settings at run time: every role takes the new settings, or none does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon import config as settings
from daemon.cli import main
from daemon.commands import reload as command
from daemon.commands import status
from daemon.config import Config
from daemon.ledger import (
    Arrival,
    Completion,
    Ledger,
    StoredResult,
    owner_name,
    this_machine,
)
from daemon.live import LiveSettings, RefusedError, Take, found
from tools.peers.waiting import wait_until


class Role:
    """A role that takes all settings except those it is set to refuse."""

    def __init__(self, name: str, file: Path, ledger: Ledger) -> None:
        self.refusal = ""
        # How often taking fails before it succeeds.
        self.failures = 0
        self.taken: list[Config] = []
        started = settings.load(file)
        self.live = LiveSettings(name, started, lambda: settings.load(file), ledger, every_s=0.02)
        self.live.serve(self._check)

    def _check(self, config: Config) -> Take:
        if self.refusal:
            raise RefusedError(self.refusal)

        def take() -> None:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("can't start new thread")
            self.taken.append(config)

        return take


class Node:
    """Two roles of a node, its settings file and its ledger."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "pleura.yaml"
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        self.ledger.is_audited = True
        self._fixed = {"ledger": self.ledger.url, "spool": str(folder / "spool")}
        self.write()
        self.ledger.record_settings(settings.digests(settings.load(self.file)))
        self.roles = [Role(name, self.file, self.ledger) for name in ("receive", "deliver")]

    def write(self, **changed: Any) -> Config:
        self.file.write_text(yaml.safe_dump(self._fixed | changed))
        return settings.load(self.file)

    def reload(self, **changed: Any) -> command.Outcome:
        return command.reload(self.ledger, self.write(**changed), "alice")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path)
    with one.roles[0].live, one.roles[1].live:
        yield one
    assert one.ledger.inspect.settings.takers() == []
    one.ledger.close()


def test_every_role_takes_new_settings_and_the_audit_trail_records_them(node: Node) -> None:
    outcome = node.reload(admission={"minimum_age_years": 16})
    assert outcome.is_taken
    settings, _, model = outcome.words.rpartition("\n")
    assert settings == "generation 2 is in force\nadmission.minimum_age_years: 18 -> 16"
    assert "`pleura status` says if it cannot serve" in model
    for role in node.roles:
        assert [each.admission.minimum_age_years for each in role.taken] == [16]
    (line,) = status.settings_lines(node.ledger.inspect)
    assert line.startswith("settings: generation 2, ")

    (row,) = node.ledger.claim_audit("me", 9)[0]
    assert row.event == "settings"
    assert row.facts == {
        "keys": "admission",
        "by": "alice",
        "changes": "admission.minimum_age_years: 18 -> 16",
    }


def test_a_reload_names_what_is_owed_to_a_destination_that_leaves(node: Node) -> None:
    node.ledger.receive([Arrival("a", "1.2", "1.2.3", "", "", "dimse", 1, 9)])
    (job,) = node.ledger.claim_images("test", 1)
    made = StoredResult("SC", "b", "1.2", "9.1", "1.2.840.10008.1.2.1", 1)
    done = Completion("analysed", "1", results=(made,))
    node.ledger.complete(job, done, {"pacs": ("SC",), "outbox": ("SC",)})

    outcome = node.reload(destinations=[{"name": "outbox", "folder": "/outbox"}])
    assert outcome.is_taken
    (line,) = [each for each in outcome.words.splitlines() if each.startswith("destination ")]
    assert line.startswith("destination pacs: not in the settings, and 1 results are owed to it")
    assert line.endswith("pleura retry --from pacs --to NAME")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"port": 11113}, "port: changed, and only a restart takes it"),
        ({"port": 11113, "report_absent": True}, "port: changed"),
        ({"report_absent": True}, "deliver: the certificate is gone"),
    ],
)
def test_one_refusal_cancels_the_reload_for_all(
    node: Node, changed: dict[str, Any], words: str
) -> None:
    node.roles[1].refusal = "the certificate is gone"
    outcome = node.reload(**changed)
    assert not outcome.is_taken
    assert words in outcome.words
    assert [role.taken for role in node.roles] == [[], []]
    assert {each.generation for each in node.ledger.inspect.settings.takers()} == {1}

    (row,) = node.ledger.claim_audit("me", 9)[0]
    assert row.event == "settings_refused"
    assert row.facts["by"] == "alice"
    assert words in row.facts["why"]
    assert f"{next(iter(changed))}: " in row.facts["changes"]


def test_settings_that_could_not_be_applied_are_not_recorded_as_taken(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.live._TROUBLE_S", 0.02)
    node.roles[1].failures = 3
    assert node.reload(admission={"minimum_age_years": 16}).is_taken
    wait_until("the settings are in force", lambda: node.roles[1].taken)
    assert [each.admission.minimum_age_years for each in node.roles[1].taken] == [16]
    assert node.roles[1].failures == 0
    wait_until(
        "every role works under it",
        lambda: {each.generation for each in node.ledger.inspect.settings.takers()} == {2},
    )


def test_a_key_of_one_role_needs_a_restart_of_only_that_role(node: Node) -> None:
    shadow = {"model": "default"}
    outcome = node.reload(shadow=shadow)
    assert not outcome.is_taken
    # Either role may have looked first.
    assert ": shadow: changed, and only a restart takes it" in outcome.words

    with Role("shadow", node.file, node.ledger).live:
        assert "THE ROLES DIFFER" in status.settings_lines(node.ledger.inspect)[0]
        assert node.reload(shadow=shadow).is_taken
        assert "in every role" in status.settings_lines(node.ledger.inspect)[0]

        outcome = node.reload(shadow=shadow | {"device": "cuda"})
        assert not outcome.is_taken
        assert outcome.words.splitlines()[1:] == [
            "shadow: shadow: changed, and only a restart takes it; restart the node, or change it "
            "back and reload the rest"
        ]
    assert node.reload().is_taken


def test_a_signal_to_one_role_is_a_reload_of_all_and_a_wrong_file_changes_nothing(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.file.write_text("prot: 104")
    node.roles[0].live.ask()
    wait_until("the error is logged", lambda: "did you mean 'port'" in caplog.text)
    wait_until("the refusal is audited", node.ledger.inspect.audit_waiting)
    (row,) = node.ledger.claim_audit("me", 9)[0]
    assert row.event == "settings_refused"
    assert row.facts["by"] == "SIGHUP to receive"
    assert "did you mean 'port'" in row.facts["why"]

    node.write(report_absent=True)
    node.roles[0].live.ask()
    wait_until("the other role takes it", lambda: node.roles[1].taken)
    (changed,) = node.roles[1].taken
    assert changed.report_absent


def test_a_file_edited_after_the_proposal_is_refused(node: Node) -> None:
    proposed = node.write(report_absent=True)
    node.write()
    outcome = command.reload(node.ledger, proposed, "alice")
    assert "other settings than those proposed" in outcome.words


def test_a_dead_process_is_not_waited_for_and_a_new_process_joins(node: Node) -> None:
    dead = f"{this_machine()}:{2**22 + 1}"
    same = found(settings.load(node.file))
    generations = node.ledger.generations
    assert generations.begin("analyse", dead, same, lambda _: True) == 1
    assert node.reload(report_absent=True).is_taken
    assert generations.begin("web", owner_name(), found(node.write()), lambda _: True) == 3
    assert "THE ROLES DIFFER" in status.settings_lines(node.ledger.inspect)[0]
    generations.end("web", owner_name())
    generations.end("analyse", dead)


def test_the_running_settings_are_compared_with_the_file(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["config", "diff", "-c", str(node.file)]
    assert main(arguments) == 0
    node.write(destinations=[{"name": "out", "folder": "/out", "results": ["SC"]}])
    assert main(arguments) == 1
    assert 'destinations[out].folder: (absent) -> "/out"' in capsys.readouterr().out


def test_a_difference_names_keys_and_shows_no_secret() -> None:
    peers = [{"ae_title": "XRAY1", "host": "10.0.4.11"}, {"ae_title": "XRAY1", "host": "10.0.4.12"}]
    url = "postgresql+psycopg://pleura:{}@db/pleura"
    before = Config.model_validate({"peers": peers, "ledger": url.format("old-secret")})
    peers[1]["priority"] = "stat"
    after = Config.model_validate({"peers": peers, "ledger": url.format("new-secret")})

    lines = settings.difference(settings.public(before), settings.public(after))
    assert lines == ['peers[XRAY1 #2].priority: "routine" -> "stat"']
    first = settings.difference(settings.public(Config()), settings.public(after))
    assert not [line for line in first if line.startswith("peers:")]
    assert settings.restart_keys(before, after) == ["ledger"]
    assert "secret" not in json.dumps(dict(found(before).shown))


def test_the_schema_for_editors_knows_every_key() -> None:
    schema = json.loads(settings.json_schema())
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    assert "Allowed: " in schema["properties"]["ae_title"]["description"]


def test_a_removed_host_stops_counting_as_different(node: Node) -> None:
    """Its processes ended without notice: a power failure, or a removed host."""
    gone = "oldhost/12345678/4026531836:77"
    earlier = found(node.write(report_absent=True))
    node.write()
    node.ledger.generations.begin("analyse", gone, earlier, lambda _: True)
    node.ledger.beat("analyse", gone)
    assert "THE ROLES DIFFER" in status.settings_lines(node.ledger.inspect)[0]

    node.ledger.end_beat("analyse", gone)
    (line,) = status.settings_lines(node.ledger.inspect)
    assert "in every role" in line
    reported = status.summary(node.ledger.inspect, [], node.file.parent)["settings"]
    assert gone not in {each["owner"] for each in reported}
    node.ledger.generations.end("analyse", gone)
