"""Weight files that also contain a program: recognised by the names inside them, never run."""

from __future__ import annotations

import zipfile
from pathlib import Path

_AS_ONNX = (
    "on a machine that trusts it, torch.onnx.export(model.eval(), torch.zeros(1, C, SIDE, SIDE), "
    '"model.onnx", dynamo=False), then `pleura model import model.onnx --kind onnx`'
)
_TORCHSCRIPT = (
    f"a TorchScript archive, which is a program; nothing in it was run. Way out: {_AS_ONNX}"
)
_EXPORTED = (
    f"a torch.export archive, which is a program; nothing in it was run. Way out: {_AS_ONNX}"
)
_BUNDLE = (
    "a MONAI bundle, whose configuration names code to run; nothing in it was run. Way out: unpack "
    "it and import the folder with --kind monai, or its models/model.pt with --kind state-dict and "
    "--architecture, if that is on the list; else " + _AS_ONNX
)


def program_in(path: Path) -> str | None:
    """The kind of a file that contains a program, and what to do instead; None for other files."""
    if path.is_dir():
        return _BUNDLE if (path / "configs").is_dir() else None
    if not zipfile.is_zipfile(path):
        return None

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        return _TORCHSCRIPT
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return _EXPORTED
    return _BUNDLE if any(name.endswith("configs/metadata.json") for name in names) else None
