"""The shipped files: the wheel, the systemd units, the README's settings, the container image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from daemon import cli, config
from daemon.ledger import Ledger
from daemon.receive.scp import Receiver
from daemon.spool import Spool
from inference.admission import REASONS

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(REPOSITORY),
    ]

    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.xdist_group("wheel")
def test_the_wheel_holds_exactly_the_three_packages(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "daemon",
        "inference",
        "training",
    }


@pytest.mark.xdist_group("wheel")
def test_the_wheel_holds_settings_runbook_recipe_and_model(wheel: list[str]) -> None:
    wanted = {"daemon/pleura.yaml", "daemon/faults.md", "training/recipes/default.yaml"}
    wanted |= {
        f"inference/models/default/{name}"
        for name in ("model.yaml", "weights.safetensors", "golden.safetensors")
    }
    assert wanted <= set(wheel)


@pytest.mark.parametrize("unit", sorted(path.name for path in (REPOSITORY / "systemd").iterdir()))
def test_systemd_accepts_the_units(unit: str, tmp_path: Path, peer: Callable[[str], str]) -> None:
    for path in (REPOSITORY / "systemd").iterdir():
        # The command and the user of the unit do not exist on this machine.
        text = (
            path.read_text()
            .replace("/opt/pleura/bin/pleura", "/bin/true")
            .replace("User=pleura", "User=root")
        )
        (tmp_path / path.name).write_text(text.replace("Group=pleura", "Group=root"))

    name = unit.replace("@.", "@cpu.")
    (tmp_path / name).write_text((tmp_path / unit).read_text())
    answer = subprocess.run(
        [peer("systemd-analyze"), "verify", "--recursive-errors=yes", str(tmp_path / name)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert str(tmp_path) not in answer.stderr, answer.stderr


def test_a_boot_starts_no_role_that_is_disabled() -> None:
    # A role is disabled on a machine that only analyses, or while no result may be sent.
    target = (REPOSITORY / "systemd" / "pleura.target").read_text()
    assert not re.findall(r"(?m)^(?:Wants|Requires|Upholds|BindsTo)=.*pleura-", target)
    for unit in (REPOSITORY / "systemd").glob("*.service"):
        assert "\nWantedBy=pleura.target\n" in unit.read_text()


def test_the_readmes_settings_are_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text()
    match = re.search(r"\n((?:    .*\n)*    ae_title:.*\n(?:    .*\n)*)", text)
    assert match is not None
    path = tmp_path / "pleura.yaml"
    path.write_text(re.sub(r"^    ", "", match[1], flags=re.M))
    settings = config.load(path)
    assert settings.destinations
    assert len(match[1].splitlines()) <= 10


def test_the_monitor_page_has_every_reason() -> None:
    text = (REPOSITORY / "docs" / "monitor.md").read_text()
    for code, reason in REASONS.items():
        told = "yes" if reason.sent else "no"
        assert f"| `{code}`: {reason.text} | {reason.state.value} | {told} |" in text


def test_no_dependency_of_the_default_install_is_under_gpl() -> None:
    seen = set()
    waiting = ["pleura"]

    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        about = metadata.metadata(name)
        licence = " ".join(
            [
                about.get("License-Expression") or about.get("License") or "",
                *about.get_all("Classifier", []),
            ]
        )
        assert "GPL" not in licence.split("\n")[0] or "LGPL" in licence, f"{name}: {licence[:200]}"
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)

    assert {"torch", "pydicom", "python-gdcm"} <= seen


# The remaining exposure: the host's root directory, local and Internet sockets, the host's network,
# and /proc/sys; for the analyse role also CUDA's devices and executable memory (docs/hardening.md).
_HIGHEST_EXPOSURE = 1.1


@pytest.mark.parametrize(
    "unit", sorted(path.name for path in (REPOSITORY / "systemd").glob("*.service"))
)
def test_the_exposure_of_each_unit_is_low(unit: str, peer: Callable[[str], str]) -> None:
    command = [peer("systemd-analyze"), "security", "--offline=true"]
    answer = subprocess.run(
        [*command, f"--threshold={_HIGHEST_EXPOSURE * 10:.0f}", str(REPOSITORY / "systemd" / unit)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("name", ["pleura.yaml", "compose-pleura.yaml"])
def test_the_images_settings_accept_its_health_check(
    name: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    theirs = yaml.safe_load((REPOSITORY / "deploy/oci" / name).read_text())
    ours = {"port": port, "spool": f"{tmp_path}/spool", "ledger": f"sqlite:///{tmp_path}/l.db"}
    settings = config.Config.model_validate(theirs | ours | {"host": "127.0.0.1"})
    text = (REPOSITORY / "deploy/oci/Containerfile").read_text()
    (check,) = re.findall(r"HEALTHCHECK.*\\\n +CMD (\[.*\])", text)
    command = [part.replace("11112", str(port)) for part in json.loads(check)]
    assert command[0] == "pleura"

    ledger = Ledger(settings.ledger)
    receiver = Receiver(settings, ledger, Spool(settings.spool))
    receiver.start()
    try:
        assert cli.main(command[1:]) == 0
    finally:
        receiver.stop()
        ledger.close()
    assert cli.main(command[1:]) != 0


def test_each_way_to_build_the_image_keeps_its_health_check() -> None:
    """Podman's default image format, OCI, has no health check."""
    assert "$(PODMAN) build --format docker" in (REPOSITORY / "Makefile").read_text()

    # podman-compose builds in the OCI format, so compose.yaml repeats the check.
    compose = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    text = (REPOSITORY / "deploy/oci/Containerfile").read_text()
    (check,) = re.findall(r"HEALTHCHECK.*\\\n +CMD (\[.*\])", text)
    assert compose["services"]["pleura"]["healthcheck"]["test"] == ["CMD", *json.loads(check)]
