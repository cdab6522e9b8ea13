"""Writes the files of a release beside the wheel, from pip's report of what it would install:

    python -m tools.release requirements REPORT     # name==version --hash=..., for `pip install -r`
    python -m tools.release audited REPORT          # name==public version, for pip-audit
    python -m tools.release sbom REPORT             # CycloneDX 1.6, JSON

REPORT is the file that `pip install --dry-run --ignore-installed --report REPORT ...` writes (`make
requirements`, `make sbom` and `make audit` do). All are for the platform of this machine.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.licences import licence

Report = Mapping[str, Any]
_OURS = "pleura"


def requirements(report: Report) -> str:
    """Pinned requirements with the SHA-256 of each file, sorted by name.

    Raises:
        ValueError: the report has no hash of a file.
    """
    lines = [
        f"# For Python {report['environment']['python_version']}, "
        f"{report['environment']['sys_platform']} {report['environment']['platform_machine']}.",
        "# pip install --require-hashes -r FILE, then pip install --no-deps the wheel of Pleura.",
    ]

    for item in _others(report):
        name = item["metadata"]["name"]
        version = item["metadata"]["version"]
        digest = _sha256(item)
        if not digest:
            raise ValueError(f"{name} {version}: pip's report has no SHA-256 of its file")
        lines.append(f"{canonicalize_name(name)}=={version} --hash=sha256:{digest}")

    return "\n".join(lines) + "\n"


def audited(report: Report) -> str:
    """The distributions to look up advisories for, by their public versions.

    Advisories do not know local versions such as 2.13.0+cpu, and would say nothing of them.
    """
    pins = [
        f"{_name(item)}=={Version(item['metadata']['version']).public}" for item in _others(report)
    ]
    return "\n".join(pins) + "\n"


def sbom(report: Report, now: datetime) -> dict[str, Any]:
    """The bill of materials: Pleura, and every distribution installed with it."""
    (ours,) = [item for item in report["install"] if _name(item) == _OURS]
    root = _component(ours) | {"type": "application"}
    components = [_component(item) for item in _others(report)]

    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "component": root,
        },
        "components": components,
        "dependencies": [
            {"ref": root["bom-ref"], "dependsOn": [item["bom-ref"] for item in components]}
        ],
    }


def _name(item: Mapping[str, Any]) -> str:
    return canonicalize_name(item["metadata"]["name"])


def _others(report: Report) -> list[Mapping[str, Any]]:
    return sorted((item for item in report["install"] if _name(item) != _OURS), key=_name)


def _sha256(item: Mapping[str, Any]) -> str:
    archive = item["download_info"].get("archive_info", {})
    return str(archive.get("hashes", {}).get("sha256", ""))


def _component(item: Mapping[str, Any]) -> dict[str, Any]:
    about = item["metadata"]
    name = _name(item)
    version = about["version"]
    # The plus sign of a local version such as 2.13.0+cpu is encoded (package URL, 5.5).
    reference = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
    }

    if about.get("summary"):
        component["description"] = about["summary"]
    if about.get("license_expression"):
        component["licenses"] = [{"expression": about["license_expression"]}]
    elif words := _licence_words(about) or _installed_licence(name):
        component["licenses"] = [{"license": {"name": words}}]
    if digest := _sha256(item):
        component["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return component


def _licence_words(about: Mapping[str, Any]) -> str:
    prefix = "License :: OSI Approved :: "
    classifiers = [text for text in about.get("classifier", []) if prefix in text]
    named = [text.removeprefix(prefix) for text in classifiers]
    return ", ".join(named) or str(about.get("license") or "").split("\n")[0][:100]


def _installed_licence(name: str) -> str:
    """The installed distribution's licence: older pips omit License-Expression from reports."""
    try:
        return licence(name)
    except metadata.PackageNotFoundError:
        return ""


def main(arguments: Sequence[str]) -> None:
    """Print the requirements, the list to audit, or the bill of materials."""
    document, path = arguments
    report = json.loads(Path(path).read_text(encoding="utf-8"))

    documents = {
        "requirements": lambda: requirements(report),
        "audited": lambda: audited(report),
        "sbom": lambda: json.dumps(sbom(report, datetime.now(UTC)), indent=2) + "\n",
    }
    sys.stdout.write(documents[document]())


if __name__ == "__main__":
    main(sys.argv[1:])
