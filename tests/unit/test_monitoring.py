"""The alert rules and the dashboard: promtool accepts them, each metric exists, and each alarm has
a runbook entry.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from daemon.alerts.kinds import KINDS
from daemon.config import Config
from daemon.deliver.verdict import cure
from daemon.ledger import Ledger
from daemon.metrics.exposition import exposition

_REPOSITORY = Path(__file__).resolve().parents[2]
_MONITORING = _REPOSITORY / "config" / "monitoring"
_RULES = yaml.safe_load((_MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]


def test_promtool_accepts_the_rules_and_their_tests(peer: Callable[[str], str]) -> None:
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        command = [peer("promtool"), *arguments]
        done = subprocess.run(command, cwd=_MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_use_only_existing_metrics(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    text = exposition(Config.model_validate({"spool": str(tmp_path)}), ledger.inspect).decode()
    ledger.close()
    families = {family.name for family in text_string_to_metric_families(text)}

    dashboard = json.loads((_MONITORING / "dashboard.json").read_text())
    asked = [rule["expr"] for rule in _RULES]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for expression in asked:
        for name in re.findall(r"\bpleura\w+", re.sub(r'"[^"]*"', "", expression)):
            family = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert family in families, (expression, name)


def test_each_alarm_has_a_runbook_entry() -> None:
    faults = (_REPOSITORY / "docs" / "faults.md").read_text()
    monitor = (_REPOSITORY / "docs" / "monitor.md").read_text()
    entries = {line.lstrip("# ") for line in (faults + monitor).splitlines() if line[:1] == "#"}
    named = {rule["annotations"]["runbook"] for rule in _RULES}
    assert named | {kind.runbook for kind in KINDS.values()} <= entries
    for rule in _RULES:
        assert f"`{rule['alert']}`" in monitor, rule["alert"]
    for kind in KINDS:
        assert f"`{kind}`" in monitor, kind


def test_a_refusal_explains_its_meaning_and_what_to_do() -> None:
    assert cure(0xA901) == (
        "; data set does not match SOP class: correct the archive's checks, or take its kind out "
        "of `results`, then `pleura retry`"
    )
    assert "SOP class not supported" in cure(0x0122)
    assert cure(0xA700) == cure(None) == ""
