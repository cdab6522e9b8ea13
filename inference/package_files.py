"""The files of a model package, read and checked against their checksums, without torch."""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from inference import manifest as manifests
from inference.container import MAX_FILE_BYTES, PackageError, opened
from inference.manifest import Manifest, ManifestError

MANIFEST = "model.yaml"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"


@dataclass(frozen=True, eq=False)
class PackageFiles:
    """A package's files whose checksums are all right. Later steps read these same bytes."""

    path: Path
    manifest: Manifest
    # The sha256 of model.yaml, which lists the sha256 of every other file.
    digest: str
    kept: dict[str, bytes]


def default_folder() -> Path:
    """The folder of the model that is shipped with Pleura."""
    return Path(str(importlib.resources.files("inference"))) / "models" / "default"


def folder_of(model: str) -> Path:
    """The folder or zip that a setting or an option names: "default", or a path."""
    return default_folder() if model == "default" else Path(model)


def read_manifest(path: Path) -> Manifest:
    """model.yaml of a folder or zip, every checksum checked, without loading a weight.

    Raises:
        PackageError: absent, not plain YAML, a wrong or unknown key, a file that is not listed, or
            one whose sha256 differs.
    """
    return read(path).manifest


def digest_of(path: Path) -> str:
    """The sha256 of model.yaml, which names the package; every checksum is checked.

    Raises:
        PackageError: see `read_manifest`.
    """
    return read(path).digest


def read(path: Path) -> PackageFiles:
    """Every file of a folder or zip, its checksum checked.

    Raises:
        PackageError: see `read_manifest`.
    """
    with opened(path) as files:
        names = files.names()
        text = files.read(MANIFEST, manifests.MAX_BYTES)

        try:
            manifest = manifests.parse(text)
        except ManifestError as error:
            raise PackageError(f"{files.where(MANIFEST)}: {error}") from error

        for name in (WEIGHTS, GOLDEN):
            if name not in manifest.sha256:
                raise PackageError(
                    f"{files.where(MANIFEST)}: sha256: {name} is not listed; every file must be"
                )

        strangers = sorted(set(names) - set(manifest.sha256) - {MANIFEST})
        if strangers:
            raise PackageError(
                f"{files.where(strangers[0])}: not listed under sha256 of {MANIFEST}; a package "
                "holds nothing else, "
                "remove the file or list it"
            )

        kept = {}

        for name, wanted in manifest.sha256.items():
            data = files.read(name, MAX_FILE_BYTES)
            if (found := sha256(data)) != wanted:
                raise PackageError(
                    f"{files.where(name)}: sha256 {found} found, {wanted} wanted; the file is "
                    "not the one packed"
                )

            if name in (WEIGHTS, GOLDEN):
                kept[name] = data

    return PackageFiles(path, manifest, sha256(text), kept)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
