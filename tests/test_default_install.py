"""The default install runs a node: no role needs a library of the `train` extra."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from daemon import cli
from daemon.exits import EXIT_CANNOT_START, EXIT_DONE
from inference.extras import TRAINING_LIBRARIES
from inference.networks import build

REPOSITORY = Path(__file__).resolve().parent.parent

_OIDC = {
    "issuer": "https://login.example/realms/staff",
    "client_id": "pleura",
    "page_url": "https://pleura.example",
    "act": ["pleura-act"],
}
# A module whose entry in sys.modules is None cannot be imported (Python's import system, 5.3.1).
_WITHOUT_TRAINING = f"""
import importlib, pkgutil, sys
for name in {sorted(TRAINING_LIBRARIES)}:
    sys.modules[name] = None

import daemon, inference
for package in (daemon, inference):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

from inference import package
print(package.load(package.folder_of("default")).identity.id)
"""


def test_the_node_and_its_model_load_without_the_training_libraries() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TRAINING], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "pleura-default"


def test_the_train_extra_brings_every_training_library() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    default = {Requirement(text).name for text in project["dependencies"]}
    extra = {Requirement(text).name for text in project["optional-dependencies"]["train"]}

    # `import sklearn` comes from the distribution scikit-learn.
    distributions = {name.replace("sklearn", "scikit-learn") for name in TRAINING_LIBRARIES}
    assert distributions <= extra
    assert not distributions & default
    ours = [
        requirement
        for text in project["optional-dependencies"]["test"]
        if (requirement := Requirement(text)).name == "pleura"
    ]
    assert any("train" in requirement.extras for requirement in ours)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--recipe", "default", "--data", "absent", "--out", "out"],
        ["evaluate", "--model", "default", "--data", "absent"],
        ["explore", "--data", "absent", "--out", "page.html"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_training_command_names_the_extra_that_is_missing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "training"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert cli.main(arguments) == EXIT_CANNOT_START
    assert capsys.readouterr().err == (
        f"pleura {arguments[0]}: needs matplotlib, which is not installed; "
        "install Pleura's extra train (docs/install.md)\n"
    )


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        ("jwt", {"web": {"oidc": _OIDC}}, "web.oidc: needs pyjwt, {}extra oidc"),
        (
            "psycopg",
            {"ledger": "postgresql://db/pleura"},
            "ledger: needs psycopg, {}extra postgresql",
        ),
    ],
)
def test_config_check_names_the_extra_that_the_settings_need(
    module: str,
    settings: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "pleura.yaml"
    file.write_text(json.dumps({"spool": str(tmp_path), **settings}))
    assert cli.main(["config", "check", "-c", str(file)]) == EXIT_DONE
    capsys.readouterr()

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else found(name)
    )
    assert cli.main(["config", "check", "-c", str(file)]) == EXIT_CANNOT_START
    missing = words.format("which is not installed; install Pleura's ")
    assert capsys.readouterr().err == f"{file}: {missing} (docs/install.md)\n"


@pytest.mark.parametrize(
    ("architecture", "arguments", "what"),
    [
        ("monai-unet-plus-plus", {}, "network monai-unet-plus-plus"),
        ("classifier", {"encoder": "efficientnet-b3"}, "encoder efficientnet-b3"),
        ("classifier", {"encoder": "se-resnext50"}, "encoder SEResNext50"),
    ],
)
def test_a_package_with_a_network_from_monai_names_the_extra(
    architecture: str, arguments: dict[str, str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)

    with pytest.raises(ValueError, match=f"{what}: needs monai.*Pleura's extra train"):
        build(architecture, **arguments)
