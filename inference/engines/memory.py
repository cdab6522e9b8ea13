"""Remembers from one start to the next which engine was fastest here.

It stores names only, no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

log = logging.getLogger("pleura.engine")

_FILE = "engines.json"
# Increased when an adapter becomes faster or slower, so that the choice is made again.
_ADAPTERS = 2
# The most choices: each new model, version or machine adds one, and the oldest is dropped.
_KEPT = 64


def folder() -> Path | None:
    """The folder for choices. systemd's CacheDirectory, else the user's cache; None without a home
    directory.
    """
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "pleura"

    try:
        return Path.home() / ".cache" / "pleura"
    except RuntimeError:
        return None


def machine(device: torch.device) -> dict[str, object]:
    """The hardware and versions that an engine's speed and arithmetic depend on."""
    versions = {}

    for name in ("torch", "openvino", "onnxruntime", "pleura"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)

    found: dict[str, object] = {
        "versions": versions,
        "build": torch.__version__,
        "device": device.type,
    }

    if device.type == "cuda":
        return found | {"name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}

    return found | {"cpu": dict(torch.cpu.get_capabilities()), "threads": torch.get_num_threads()}


class Memory:
    """The choices for one model on one machine at one largest batch.

    A file that cannot be read counts as empty.
    """

    def __init__(
        self, where: Path | None, model_digest: str, device: torch.device, max_batch: int
    ) -> None:
        self._path = where / _FILE if where else None
        facts = {
            "model": model_digest,
            "machine": machine(device),
            "max_batch": max_batch,
            "adapters": _ADAPTERS,
        }
        self._key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def recall(self) -> dict[str, list[str]]:
        """Role -> the engines' names, one for each size of batch; empty if nothing is known."""
        found = self._read().get(self._key)
        if not isinstance(found, dict):
            return {}
        return {
            str(role): [str(name) for name in names]
            for role, names in found.items()
            if isinstance(names, list)
        }

    def keep(self, choices: dict[str, list[str]]) -> None:
        """Write the choices. If that fails, the next start measures again."""
        if self._path is None:
            return

        document = self._read()
        document.pop(self._key, None)
        document = dict([*document.items(), (self._key, choices)][-_KEPT:])

        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

            # Two processes may write at once: each writes a temporary file, and the last rename
            # stands.
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, prefix=".engines-", delete=False, encoding="utf-8"
            ) as file:
                json.dump(document, file, indent=1)

            Path(file.name).replace(self._path)
        except OSError as error:
            log.info("the choice of engines is not kept (%s); the next start measures again", error)

    def _read(self) -> dict[str, object]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}
