"""The Debian package's maintainer scripts, called in dpkg's order (deb-policy, chapter 6), with
folders and commands of the test's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "deb"
ROLES = ["pleura-analyse@cuda:0.service", "pleura-receive.service", "pleura.target"]

# The scripts' absolute folders, which the test replaces by folders below its own.
_FOLDERS = (
    "/etc/pleura",
    "/etc/systemd",
    "/opt/pleura",
    "/run/",
    "/usr/share/pleura",
    "/var/cache/pleura",
    "/var/lib/pleura",
)
_COMMANDS = {
    # This fake systemctl keeps the units of each state as the lines of a file.
    "systemctl": """
        case "$1" in
        list-units)
            sed 's/$/ loaded active running a role/' "$TEST/running"
            case "$*" in *failed*) sed 's/$/ loaded failed failed a role/' "$TEST/failed" ;; esac ;;
        list-jobs) sed 's/.*/7 & start waiting/' "$TEST/waiting" ;;
        start | stop)
            act=$1
            shift
            for unit; do
                case "$unit" in --*) continue ;; esac
                for state in running failed waiting; do
                    grep -vxF "$unit" "$TEST/$state" > "$TEST/others" || true
                    mv "$TEST/others" "$TEST/$state"
                done
                if [ "$unit" = "$(cat "$TEST/unknown")" ]; then exit 5; fi
                if [ "$act" = start ]; then echo "$unit" >> "$TEST/running"; fi
            done ;;
        esac""",
    # Only root may change owners, so this fake only checks that the file exists.
    "chown": '[ -e "$2" ]',
    "install": 'mkdir -p -m 700 "${8}"',
    "setpriv": 'shift 3; exec "$@"',
}


class Host:
    """A simulated host with the package installed and the roles running under systemd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "var/lib/pleura"
        self.settings = folder / "etc/pleura/pleura.yaml"
        self._running = folder / "running"
        for name in ("bin", "opt/pleura/bin", "run/systemd/system", "usr/share/pleura"):
            (folder / name).mkdir(parents=True)

        for name, text in _COMMANDS.items():
            self.command(folder / "bin" / name, text)
        self.set_debts("")
        self.set_unknown_unit("")
        (folder / "usr/share/pleura/pleura.yaml").write_text("# settings to begin with")
        self.set_units("running", ROLES)
        self.set_units("failed", [])
        self.set_units("waiting", [])

    def set_units(self, state: str, units: list[str]) -> None:
        """Set which units run, have failed, or wait to be started."""
        (self.folder / state).write_text("".join(f"{unit}\n" for unit in units))

    def command(self, path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def set_debts(self, words: str) -> None:
        """Set the answer of daemon.commands.debts."""
        script = f"echo {words}; exit 1" if words else "exit 0"
        self.command(self.folder / "opt/pleura/bin/python", script)

    def set_unknown_unit(self, unit: str) -> None:
        """Set the unit that systemd cannot start or stop."""
        (self.folder / "unknown").write_text(unit)

    def call(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        text = (SCRIPTS / script).read_text()
        for path in _FOLDERS:
            text = text.replace(path, f"{self.folder}{path}")
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "TEST": str(self.folder),
        }
        return subprocess.run(
            ["/bin/sh", "-c", text, script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )

    def call_and_check(self, script: str, *arguments: str) -> str:
        """Call a script that must succeed. Returns its output."""
        done = self.call(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def running(self) -> list[str]:
        return sorted(self._running.read_text().splitlines())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.call_and_check("postinst", "configure", "")
    return made


def test_an_upgrade_restarts_the_units_it_stopped(host: Host) -> None:
    host.call_and_check("prerm", "upgrade", "2")
    assert host.running() == []
    host.call_and_check("postinst", "configure", "1")
    assert host.running() == ROLES


@pytest.mark.parametrize("state", ["failed", "waiting"])
def test_an_upgrade_starts_units_that_had_failed_or_waited_to_start(host: Host, state: str) -> None:
    """After a rollback that refuses the ledger every role has failed; at a boot they wait."""
    host.set_units("running", ROLES[2:])
    host.set_units(state, ROLES[:2])
    host.call_and_check("prerm", "upgrade", "2")
    assert (host.folder / "waiting").read_text() == ""
    host.call_and_check("postinst", "configure", "1")
    assert host.running() == ROLES


def test_a_removal_leaves_nothing_that_waits_to_start(host: Host) -> None:
    host.set_units("running", ROLES[:2])
    host.set_units("waiting", ROLES[2:])
    host.call_and_check("prerm", "remove")
    assert (host.folder / "waiting").read_text() == ""


def test_a_failed_upgrade_restarts_the_units_it_stopped(host: Host) -> None:
    # As on a full disk, when dpkg calls the old version's postinst.
    host.call_and_check("prerm", "upgrade", "2")
    host.call_and_check("postinst", "abort-upgrade", "2")
    assert host.running() == ROLES


def test_units_stopped_by_a_failed_attempt_are_started_after_the_second(host: Host) -> None:
    host.set_unknown_unit("pleura-receive.service")
    assert host.call("prerm", "upgrade", "2").returncode != 0
    host.set_unknown_unit("")
    host.call_and_check("prerm", "failed-upgrade", "1")
    host.call_and_check("postinst", "configure", "1")
    assert host.running() == ROLES


def test_a_unit_that_does_not_start_is_reported_and_fails_no_upgrade(host: Host) -> None:
    host.call_and_check("prerm", "upgrade", "2")
    host.set_unknown_unit("pleura.target")
    assert "not every unit" in host.call_and_check("postinst", "configure", "1")
    assert host.running() == ROLES[:2]


def test_settings_are_installed_once_and_never_overwritten(host: Host) -> None:
    assert host.settings.stat().st_mode & 0o777 == 0o640
    host.settings.write_text("ae_title: SITE")
    host.call_and_check("prerm", "upgrade", "2")
    host.call_and_check("postinst", "configure", "1")
    assert host.settings.read_text() == "ae_title: SITE"

    # A site may keep its settings elsewhere.
    host.settings.unlink()
    host.call_and_check("prerm", "upgrade", "3")
    host.call_and_check("postinst", "configure", "2")
    assert not host.settings.exists()
    assert host.running() == ROLES


def test_an_installation_after_a_removal_says_how_to_start(host: Host) -> None:
    enabled = host.folder / "etc/systemd/system/multi-user.target.wants"
    enabled.mkdir(parents=True)
    (enabled / "pleura.target").symlink_to("/lib/systemd/system/pleura.target")
    assert "enable --now" not in host.call_and_check("postinst", "configure", "1")

    (enabled / "pleura.target").unlink()
    host.call_and_check("prerm", "remove")
    host.call_and_check("postrm", "remove")
    assert "enable --now" in host.call_and_check("postinst", "configure", "1")
    assert host.running() == []


def test_a_purge_removes_nothing_while_there_are_debts(host: Host) -> None:
    host.set_debts("1 images wait to be analysed")
    assert "1 images wait" in host.call_and_check("prerm", "remove")
    host.call_and_check("postrm", "remove")
    assert "stays" in host.call_and_check("postrm", "purge")
    assert host.state.exists()

    host.call_and_check("postinst", "configure", "")
    host.set_debts("")
    host.call_and_check("prerm", "remove")
    host.call_and_check("postrm", "remove")
    assert "stays" not in host.call_and_check("postrm", "purge")
    assert not host.state.exists()


def test_a_purge_keeps_a_folder_used_after_the_removal(host: Host) -> None:
    (host.state / "ledger.db").write_text("old")
    host.call_and_check("prerm", "remove")
    host.call_and_check("postrm", "remove")

    # A node installed from the wheel, or a restored backup that keeps its file times, may have used
    # it.
    image = host.state / "image"
    image.write_text("an image")
    os.utime(image, (0, 0))
    assert "stays" in host.call_and_check("postrm", "purge")
    assert image.exists()


def test_the_package_can_be_removed_if_its_folder_is_missing(host: Host) -> None:
    host.state.rmdir()
    host.call_and_check("prerm", "remove")
    host.call_and_check("postrm", "remove")
    host.call_and_check("postrm", "purge")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds a Debian package")
def test_the_service_can_read_the_package_whatever_the_builders_umask(tmp_path: Path) -> None:
    wheel = tmp_path / "pleura-9.9.9-py3-none-any.whl"
    wheel.touch()
    # The fake pip installs nothing, and the umask denies others any access, as on a hardened host.
    environment = os.environ | {"PIP": "true", "PYTHON": sys.executable}
    build = [str(SCRIPTS / "build"), str(wheel), str(tmp_path / "out")]
    subprocess.run(build, env=environment, umask=0o077, check=True, capture_output=True)
    (package,) = (tmp_path / "out").glob("pleura_9.9.9-1_*.deb")

    listed = subprocess.run(
        ["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True
    )
    closed = [
        line
        for line in listed.stdout.splitlines()
        if line[7] != "r" and not line.endswith(" ./etc/pleura/")
    ]
    assert closed == []
    # The package has no conffiles: dpkg would ask about them in each upgrade while the roles are
    # stopped.
    control = ["dpkg-deb", "--info", package, "conffiles"]
    assert subprocess.run(control, capture_output=True).returncode != 0
