"""The shadow's networks as a process: a line with a file's path in, a line with the answer out.

The shadow role starts it (shadow.py). It runs at idle priority. A process at idle priority must not
hold a lock of the ledger, so this one has no ledger: it reads one file at a time and answers. It
makes no result objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from daemon.parent import end_with_parent

if TYPE_CHECKING:
    from inference.pipeline import Pipeline

# nice(2)
_LEAST_URGENT = 19
# Unused, because no result is made.
_NO_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class UnusableModelError(Exception):
    """The shadow's package cannot be used. The message is for the operator."""


@dataclass(frozen=True)
class Answer:
    """The shadow's answer on one image; `why`: in place of an answer, "" with one."""

    probability: float | None
    positive: bool | None
    why: str


def main(arguments: Sequence[str]) -> None:
    """Serve one package: its path, the device, and the keyword arguments of Rules as JSON."""
    model, device, rules = arguments
    # Also in the middle of an image
    end_with_parent()
    _step_aside()

    # A library may print to standard output; the answers have a descriptor of their own.
    with os.fdopen(os.dup(1), "w") as out, warnings.catch_warnings():
        os.dup2(2, 1)
        # pydicom's warnings quote header values.
        warnings.simplefilter("ignore")
        try:
            pipeline = load(model, device, json.loads(rules))
        except UnusableModelError as error:
            _say(out, {"unusable": str(error)})
        except Exception as error:
            _say(out, {"unusable": type(error).__name__})
        else:
            _say(out, {"name": name_of(pipeline)})
            serve(pipeline, sys.stdin, out)


def load(model: str, device: str, rules: dict[str, Any]) -> Pipeline:
    """Load and replay a package, in plain torch with one thread.

    Raises:
        UnusableModelError: the package or the device cannot be used.
    """
    import torch

    from inference import package
    from inference.admission import Rules
    from inference.engine import Engine, choose_device
    from inference.pipeline import AnalysisSettings, Pipeline

    try:
        found = package.load(package.folder_of(model))
        engine = Engine(found, choose_device(device), wanted="torch", max_batch=1)
    except (package.PackageError, ValueError) as error:
        raise UnusableModelError(str(error)) from error

    # The other cores are for the images that wait.
    torch.set_num_threads(1)
    # JSON turns tuples into lists.
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in rules.items()
    }
    # No kinds of result: nothing is encoded.
    return Pipeline(engine, AnalysisSettings(rules=Rules(**given), kinds=frozenset()))


def name_of(pipeline: Pipeline) -> str:
    """The package as `instances.model` names it."""
    identity = pipeline.engine.identity
    return f"{identity.id} {identity.version} {identity.digest}"


def serve(pipeline: Pipeline, paths: Iterable[str], out: TextIO) -> None:
    """Answer each line, a path as JSON, until standard input ends. The answer repeats the path."""
    for line in paths:
        path = json.loads(line)
        _say(out, {"path": path, **asdict(answer(pipeline, Path(path)))})


def answer(pipeline: Pipeline, path: Path) -> Answer:
    """The answer on one file. An error is reported by its type: its text may quote a header."""
    try:
        (outcome,) = pipeline.analyse([path.read_bytes()], _NO_TIME)
    except Exception as error:
        return Answer(None, None, type(error).__name__)

    finding = outcome.finding
    if finding is None:
        return Answer(None, None, outcome.reason or "no finding")
    return Answer(finding.probability, finding.positive, "")


def _say(out: TextIO, what: dict[str, Any]) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


def _step_aside() -> None:
    """Give way to every other process: run on idle cores alone, and be the first to be killed."""
    # systemd's units forbid these calls, and have settings in their place.
    with contextlib.suppress(OSError):
        os.nice(_LEAST_URGENT)
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        # proc_pid_oom_score_adj(5): when memory is short, the kernel ends this process first.
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(sys.argv[1:])
