"""The folder of one training run: the recipe, the data, the machine, and the results.

    recipe.json        every knob, also those at their default
    environment.json   the command, the data's digest, versions, machine, commit; no names of users
                       or folders
    curves/            a CSV of each network: loss, rate and figures of each epoch
    tensorboard/       the same for TensorBoard
    checkpoints/       what an unfinished network resumes from
    weights/           finished networks

The same command again resumes; a folder of another recipe or other data is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel, ValidationError
from rich.console import Console
from safetensors.torch import save as to_safetensors
from torch import nn

from training.data.cases import Case
from training.fitting import ranks

_RECIPE, _ENVIRONMENT = "recipe.json", "environment.json"
_PACKAGES = ("pleura", "torch", "numpy", "monai", "scikit-learn", "pydicom", "pillow")
# Files that a run writes first, finished or not
_OURS = ("recipe", "environment")
# The last digits of sums depend on these.
_NUMBERS = ("packages", "commit", "machine", "cpu", "device", "threads", "processes")
_FOLDERS = {r"--d\w*": "DATA", r"--o\w*": "OUT"}
# The most differences that a message names
_SHOWN = 5


class RunError(Exception):
    """The folder cannot take this run; the message says why and what to do."""


class Run:
    """One run's folder, new or resumed. Of several processes only the first writes and prints."""

    def __init__(self, folder: Path, recipe: BaseModel, data: str, command: Sequence[str]) -> None:
        """`data` is their `digest`, `command` the words that started the run.

        Every process returns, or every process raises.

        Raises:
            RunError: the folder cannot be made or holds something else, or a run of another recipe
                or other data.
        """
        self.folder = folder
        self.first = ranks.rank() == 0
        self.console = Console(quiet=not self.first)
        self.command = _without_folders(command)
        self.environment = {"command": self.command, "data": data, **environment()}
        fault = ""

        if self.first:
            try:
                self._begin(recipe)
            except (RunError, OSError) as error:
                fault = str(error)

        if fault := ranks.same(fault):
            raise RunError(fault)

    def checkpoint(self, name: str) -> Path:
        """The file of the network of that name between epochs."""
        return self.folder / "checkpoints" / f"{name}.pt"

    def weights(self, name: str) -> Path:
        """The file of the finished network of that name."""
        return self.folder / "weights" / f"{name}.safetensors"

    def keep(self, name: str, network: nn.Module) -> None:
        """Write the weights of that name. The file format supports only the contiguous layout."""
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        write(self.weights(name), lambda file: file.write(to_safetensors(state)))

    def curve(self, name: str) -> Path:
        """Its CSV."""
        return self.folder / "curves" / f"{name}.csv"

    def tensorboard(self, name: str) -> Path:
        """Its folder of TensorBoard events."""
        return self.folder / "tensorboard" / name

    def _begin(self, recipe: BaseModel) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _RECIPE).exists():
            self._resume(recipe)
            return

        there = sorted(path.name for path in self.folder.iterdir())
        if strangers := [name for name in there if name.lstrip(".").split(".")[0] not in _OURS]:
            raise RunError(
                f"{self.folder}: holds {', '.join(strangers[:_SHOWN])} and no run; give an empty "
                "folder"
            )
        _write_json(self.folder / _ENVIRONMENT, self.environment)
        # Written last: this file says that the run has begun.
        _write_json(self.folder / _RECIPE, _knobs(recipe))

    def _resume(self, recipe: BaseModel) -> None:
        found = _with_defaults(type(recipe), _read_json(self.folder / _RECIPE))
        then = _read_json(self.folder / _ENVIRONMENT)
        other = list(_differences(found, _knobs(recipe)))
        if other:
            more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
            raise RunError(
                f"{self.folder}: holds a run of another recipe: "
                f"{'; '.join(other[:_SHOWN])}{more}. Give another folder, or the recipe as it was"
            )

        if then.get("data") != self.environment["data"]:
            raise RunError(
                f"{self.folder}: holds a run on other data (digest {then.get('data')} then, "
                f"{self.environment['data']} now). Give another folder, or the data as they were"
            )

        self.console.print(f"{self.folder}: resumes")
        before, now = (
            {key: where.get(key) for key in _NUMBERS} for where in (then, self.environment)
        )
        for change in _differences(before, now):
            self.console.print(f"  {change}: the last digits of the weights may differ")


def digest(cases: Iterable[Case]) -> str:
    """SHA-256 of a set of images: masks, labels and what decides their split, in any order."""
    names = sorted(
        json.dumps(
            [case.image_id, case.identity(), case.patient, case.fold, case.label, case.as_published]
        )
        for case in cases
    )
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Everything that a run's numbers may depend on beside recipe and data."""
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__config__.show().splitlines(),
        "commit": _commit(),
    }


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: `save` fills it, and it gets its name when it is on the disk.

    This is safe against a kill and a power loss.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        save(file)
        file.flush()
        os.fsync(file.fileno())

    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _knobs(recipe: BaseModel) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True)


def _with_defaults(form: type[BaseModel], document: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run, with the knobs that this version added at their defaults."""
    try:
        return _knobs(form.model_validate(document))
    except ValidationError:
        return document


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write(path, lambda file: file.write(json.dumps(document, indent=2).encode()))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON ({error}); give another folder") from error
    if not isinstance(document, dict):
        raise RunError(f"{path}: no run wrote this; give another folder")
    return document


def _differences(before: Any, now: Any, key: str = "") -> Iterable[str]:
    """ "networks.0.batch was 8, is 16" for each leaf that differs."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(
                before.get(name), now.get(name), f"{key}.{name}" if key else str(name)
            )
    elif before != now:
        yield f"{key} was {json.dumps(before)}, is {json.dumps(now)}"


def _without_folders(command: Sequence[str]) -> str:
    """The command as a shell takes it, without the folders of --data, --out and other paths.

    Folders may name people. argparse takes abbreviated options, too.
    """
    words = "\0".join(command)
    for option, name in _FOLDERS.items():
        words = re.sub(rf"(^|\0)({option}[=\0])[^\0]*", rf"\1\2{name}", words)
    return shlex.join(
        re.sub(r"^((?:[\w.-]+=)*).*/(?=.)", r"\1", word) for word in words.split("\0")
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that holds this file, if any; "-dirty" if files differ."""
    checkout = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None

    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    describe = [git, "-C", str(checkout), "describe", *options]
    answer = subprocess.run(describe, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
