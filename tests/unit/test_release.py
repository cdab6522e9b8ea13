"""Release files from a pip report: requirements with hashes, the SBOM, and the page of licences."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from tools import licences, release

REPORT: dict[str, Any] = {
    "environment": {
        "python_version": "3.11",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    },
    "install": [
        {
            "metadata": {"name": "torch", "version": "2.13.0+cpu", "license": "BSD\nwhole text"},
            "download_info": {"archive_info": {"hashes": {"sha256": "aa"}}},
        },
        {
            "metadata": {"name": "pleura", "version": "0.1.0", "license_expression": "Apache-2.0"},
            "download_info": {"dir_info": {}},
        },
        {
            "metadata": {
                "name": "PyYAML",
                "version": "6.0.3",
                "classifier": ["License :: OSI Approved :: MIT License"],
            },
            "download_info": {"archive_info": {"hashes": {"sha256": "bb"}}},
        },
    ],
}


def test_requirements_pin_each_file_and_omit_our_wheel() -> None:
    lines = release.requirements(REPORT).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "pyyaml==6.0.3 --hash=sha256:bb",
        "torch==2.13.0+cpu --hash=sha256:aa",
    ]


def test_advisories_are_looked_up_by_public_versions() -> None:
    """The service knows no 2.13.0+cpu, and torch was left out of every audit."""
    assert release.audited(REPORT).splitlines() == ["pyyaml==6.0.3", "torch==2.13.0"]


def test_an_audit_that_leaves_something_out_fails() -> None:
    makefile = (licences.REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (command,) = [line for line in makefile.splitlines() if "/pip-audit " in line]
    assert "--strict" in command


def test_a_file_without_a_hash_is_refused() -> None:
    report = copy.deepcopy(REPORT)
    report["install"][0]["download_info"] = {"url": "file:///torch.whl"}
    with pytest.raises(ValueError, match="pip's report has no SHA-256"):
        release.requirements(report)


def test_the_sbom_names_each_distribution_its_licence_and_its_file() -> None:
    bom = release.sbom(REPORT, datetime(2026, 11, 29, tzinfo=UTC))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["timestamp"] == "2026-11-29T00:00:00Z"
    assert bom["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]

    yaml, torch = bom["components"]
    assert yaml["purl"] == "pkg:pypi/pyyaml@6.0.3"
    assert yaml["licenses"] == [{"license": {"name": "MIT License"}}]
    assert torch["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert torch["hashes"] == [{"alg": "SHA-256", "content": "aa"}]
    assert torch["licenses"] == [{"license": {"name": "BSD"}}]
    assert bom["dependencies"][0]["dependsOn"] == [yaml["bom-ref"], torch["bom-ref"]]


def test_the_licence_page_lists_the_default_install_and_nothing_under_gpl() -> None:
    page = licences.PAGE.read_text(encoding="utf-8")
    default = page.partition("## The default install")[2].partition("## With")[0]
    for name in licences.closure(licences.requirements()):
        assert f"| {name} |" in default, f"{name}: python -m tools.licences"
    assert "GPL" not in default
    assert "| ? |" not in page
