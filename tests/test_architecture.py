"""Which module may import which (docs/architecture.md), and which libraries a process must not
load.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = {"daemon", "inference", "training"}
ROLES = ("receive", "analyse", "deliver")
# For each part of `daemon`, the other parts that it may import (docs/architecture.md, "The rooms").
ROOMS = {
    "addresses": set(),
    "alerts": {"backoff", "config", "drift", "ledger", "metrics", "tls"},
    "backoff": set(),
    "config": {"exits", "installed"},
    "dicom": {"watchdog"},
    "drift": {"ledger"},
    "exits": set(),
    "garbage": set(),
    "heartbeat": {"ledger"},
    "installed": set(),
    "ledger": {"backoff"},
    "live": {"config", "ledger"},
    "log": set(),
    "metrics": {"config", "heartbeat", "installed", "ledger", "spool", "tls"},
    "output": set(),
    "ownership": {"config"},
    "report": {"drift", "ledger"},
    "spool": set(),
    "tcp": set(),
    "tls": {"config"},
    "torch_process": set(),
    "watchdog": set(),
    "adoption": {"dicom", "ledger", "spool"},
}

# The analysis, and the libraries that read pixels or data sets.
_HEAVY = "torch highdicom inference training scipy safetensors numpy pydicom pynetdicom PIL"
# Modules, and the modules that importing them must not load. The rows are imported in this order.
_LOADED = {
    "daemon.cli daemon.supervisor": f"{_HEAVY} sqlalchemy pydantic yaml ssl asyncio",
    "daemon.config daemon.ownership": f"{_HEAVY} sqlalchemy",
    "daemon.commands.status": f"{_HEAVY} sqlalchemy.dialects.postgresql",
    "daemon.service daemon.receive.scp daemon.receive.inbox": f"{_HEAVY} smtplib",
    "daemon.deliver.deliverer": f"{_HEAVY} prometheus_client httpx",
    # In each process that decodes images for a training
    "training.data.cache": "torch scipy matplotlib highdicom",
}
# Commands of a node whose ledger is SQLite, and the modules that they must not load. The rows run
# in this order.
_COMMANDS = {
    "--version": f"{_HEAVY} sqlalchemy pydantic yaml ssl asyncio",
    "config check": f"{_HEAVY} sqlalchemy asyncio smtplib httpx",
    "config show": f"{_HEAVY} sqlalchemy asyncio smtplib httpx",
    "status": f"{_HEAVY} sqlalchemy asyncio smtplib httpx daemon.ledger.records",
    "status --json": f"{_HEAVY} sqlalchemy asyncio smtplib httpx daemon.ledger.records",
    "trace 1.2.3": f"{_HEAVY} sqlalchemy.dialects.postgresql smtplib httpx prometheus_client",
    "retry": f"{_HEAVY} smtplib httpx prometheus_client",
    "verify": f"{_HEAVY} smtplib httpx prometheus_client",
    "drift": f"{_HEAVY} smtplib httpx prometheus_client",
    "alerts list": f"{_HEAVY} httpx prometheus_client",
    "metrics": f"{_HEAVY} httpx",
    "model show": "torch highdicom scipy training",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_a_package_imports_only_the_packages_that_it_may() -> None:
    for package in sorted(OURS):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = path.relative_to(REPOSITORY).as_posix()
            imported = {module.split(".")[0] for module in imports(path)} & OURS - {package}
            assert imported <= _allowed(name), f"{name} imports {sorted(imported - _allowed(name))}"


def _allowed(name: str) -> set[str]:
    """The other packages of this repository that a file may import."""
    if name in ("daemon/cli.py", "daemon/model_commands.py"):
        return {"inference", "training"}
    if name == "daemon/predict_command.py":
        return {"inference"}
    # service.py starts the analyse role, and handles its failures to start.
    if name == "daemon/service.py" or name.startswith(("daemon/analyse/", "training/")):
        return {"inference"}
    return set()


def test_the_roles_do_not_import_each_other() -> None:
    for role in ROLES:
        others = tuple(f"daemon.{other}" for other in ROLES if other != role)
        for path in sorted((REPOSITORY / "daemon" / role).glob("*.py")):
            imported = {module for module in imports(path) if module.startswith(others)}
            assert not imported, f"daemon/{role}/{path.name} imports {sorted(imported)}"


def test_a_part_of_the_daemon_imports_only_what_its_row_names() -> None:
    for path in sorted((REPOSITORY / "daemon").rglob("*.py")):
        room = path.relative_to(REPOSITORY / "daemon").parts[0].removesuffix(".py")
        if room not in ROOMS:
            continue
        others = {each.split(".")[1] for each in imports(path) if each.startswith("daemon.")}
        others -= {room} | ROOMS[room]
        assert not others, f"{path.relative_to(REPOSITORY)} imports {sorted(others)}"


def test_benchmarks_never_import_tests() -> None:
    for path in sorted((REPOSITORY / "benchmarks").rglob("*.py")):
        imported = {module for module in imports(path) if module.split(".")[0] == "tests"}
        assert not imported, f"benchmarks/{path.name} imports {sorted(imported)}; see tools/peers"


def test_every_import_of_our_own_modules_resolves() -> None:
    """Also in a test that is skipped on this machine, after a module has moved."""
    for folder in sorted(OURS | {"tests", "tools", "benchmarks"}):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    name = path.relative_to(REPOSITORY)
                    assert _is_there(node.module), f"{name} imports {node.module}, which is absent"


def _is_there(module: str) -> bool:
    """True for a library's module, and for a file or folder that exists in this repository."""
    folder = REPOSITORY.joinpath(*module.split("."))
    is_ours = module.split(".")[0] in OURS | {"tests", "tools", "benchmarks"}
    return not is_ours or folder.is_dir() or folder.with_suffix(".py").is_file()


def test_a_process_does_not_load_what_it_does_not_need() -> None:
    """It would cost memory in roles that run for months."""
    load = "for name in names.split(): importlib.import_module(name)"
    assert _loaded_by(load, _LOADED) == [f"{names} []" for names in _LOADED]


def test_a_command_does_not_load_what_it_does_not_need(tmp_path: Path) -> None:
    """It would cost time in commands that people wait for."""
    settings = tmp_path / "pleura.yaml"
    ledger = tmp_path / "ledger.db"
    settings.write_text(f"spool: {tmp_path / 'spool'}\nledger: sqlite:///{ledger}\n")
    make = "from daemon.ledger import Ledger; import sys; Ledger(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-P", "-c", make, f"sqlite:///{ledger}"], check=True)

    run = "\n    ".join(
        (
            "from daemon import cli",
            f"words = [] if names[0] == '-' or 'model' in names else ['-c', {str(settings)!r}]",
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):",
            "    cli.main([*names.split(), *words])",
        )
    )
    assert _loaded_by(run, _COMMANDS) == [f"{words} []" for words in _COMMANDS]


def _loaded_by(step: str, rows: dict[str, str]) -> list[str]:
    """One line for each row: its words, and the unwanted modules that are loaded after its step.

    One process runs all rows, so the row that loads least comes first.
    """
    program = "\n".join(
        (
            "import contextlib, importlib, io, sys",
            "def loaded(names, unwanted):",
            f"    {step}",
            "    print(names, sorted(set(unwanted.split()) & set(sys.modules)))",
            *(f"loaded({names!r}, {unwanted!r})" for names, unwanted in rows.items()),
        )
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    return found.stdout.splitlines()


def test_the_ledger_package_resolves_each_of_its_public_names() -> None:
    """daemon.ledger imports a name's module when the name is first used."""
    from daemon import ledger

    for name in ledger.__all__:
        assert getattr(ledger, name).__name__ == name


def test_constraints_pin_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    }
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["train"], *extras["test"], *extras["docs"]]
    names = {
        name.split(">")[0].split("=")[0].split("<")[0].split("[")[0].lower() for name in wanted
    }
    # pyproject.toml itself pins torch; "pleura[train]" is our own extra.
    assert names - pinned == {"torch", "pleura"}


def test_no_private_name_of_pynetdicom_is_used() -> None:
    """In a file that imports pynetdicom, private names are used only on self or cls, in tests
    too.
    """
    for path in sorted(REPOSITORY.rglob("*.py")):
        name = path.relative_to(REPOSITORY)
        if name.parts[0].startswith("."):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        theirs = [each for each in imports(path) if each.split(".")[0] == "pynetdicom"]
        assert not [each for each in theirs if "._" in each], f"{name} imports {theirs}"
        if theirs:
            found = [node.attr for node in ast.walk(tree) if _is_private_of_another(node)]
            assert not found, f"{name} uses {found}"


def _is_private_of_another(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
        return False
    is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    return not is_own and not node.attr.endswith("__")


def test_no_process_of_ours_imports_from_the_working_directory() -> None:
    """Without -P, `python -m` runs any `yaml.py` that lies where the service was started."""
    starts = []
    for folder in ("daemon", "inference", "training"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
                    words = [ast.unparse(element) for element in node.elts]
                    if words[0] == "sys.executable":
                        starts.append((path.name, words[1]))
    assert starts
    assert {flag for _, flag in starts} == {"'-P'"}, starts
