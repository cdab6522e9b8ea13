"""Hostile model packages: a package comes from elsewhere, so its contents are checked and none of
its code is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inference import package
from inference.package import PackageError
from tests.models import TINY
from tests.unit.test_package import edit, replace_tensors


def replace_bytes(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and correct its checksum, so that only its contents are wrong."""
    (folder / name).write_bytes(data)
    edit(
        folder, lambda document: document["sha256"].update({name: hashlib.sha256(data).hexdigest()})
    )


class _Bomb:
    """An object whose unpickling creates a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_the_bomb_of_these_tests_runs_when_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "model.yaml"])
@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(
    tiny_package: Path, tmp_path: Path, name: str, dump: Callable[..., None]
) -> None:
    with (tmp_path / "pickle").open("wb") as file:
        dump(_Bomb(tmp_path / "ran"), file)
    data = (tmp_path / "pickle").read_bytes()
    if name == "model.yaml":
        (tiny_package / name).write_bytes(data)
    else:
        replace_bytes(tiny_package, name, data)
    with pytest.raises(PackageError, match=f"{name}: "):
        package.load(tiny_package)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["weights.pt", "pytorch_model.bin", "model.pkl", "setup.py", ".hidden"]
)
def test_a_file_that_is_not_listed_is_refused_and_not_run(
    tiny_package: Path, tmp_path: Path, name: str
) -> None:
    (tiny_package / name).write_bytes(pickle.dumps(_Bomb(tmp_path / "ran")))
    with pytest.raises(PackageError, match=f"{name}(: not listed|' is not a plain file name)"):
        package.load(tiny_package)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "link in place of a file"])
def test_only_plain_files_may_lie_in_the_folder(
    tiny_package: Path, tmp_path: Path, what: str
) -> None:
    if what == "link":
        (tiny_package / "more").symlink_to("/etc/passwd")
    elif what == "folder":
        (tiny_package / "more").mkdir()
    elif what == "pipe":
        # Opening a pipe without a writer would block for ever.
        os.mkfifo(tiny_package / "more")
    else:
        (tiny_package / "weights.safetensors").rename(tmp_path / "elsewhere")
        (tiny_package / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="is a folder, a link or a device"):
        package.load(tiny_package)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("extra: !!python/object/apply:os.mkdir [RAN]", "python/object"),
        ("extra: !!python/name:os.system", "python/name"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "alias"),
        ("a: &a {b: 1}\nc: {<<: *a}", "alias"),
        ("licence: free", "'licence' is given twice"),
        ("? [a]\n: b", "plain key"),
        ("metrics2: " + "[" * 5000, "nested deeper"),
        ("extra: 1" + "0" * 5000, "plain YAML"),
        ("extra: 2026-13-01", "plain YAML"),
        ("extra: \x00", "plain YAML"),
        ("# " + "x" * 300_000, "bytes found"),
        ("---\na: 1", "plain YAML"),
    ],
)
def test_yaml_with_more_than_plain_values_is_refused(
    tiny_package: Path, tmp_path: Path, text: str, word: str
) -> None:
    path = tiny_package / "model.yaml"
    path.write_text(path.read_text() + "\n" + text.replace("RAN", str(tmp_path / "ran")) + "\n")
    with pytest.raises(PackageError, match=word):
        package.load(tiny_package)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "[]", "3", "hello", "\xff\xfe"])
def test_yaml_that_is_not_a_manifest_is_refused(tiny_package: Path, text: str) -> None:
    (tiny_package / "model.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(PackageError, match=r"model\.yaml: "):
        package.load(tiny_package)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["segmenter.head.bias"]


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["segmenter.head.bias"] = torch.zeros(2)


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["segmenter.more"] = torch.zeros(2)


def retype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["segmenter.head.bias"] = torch.zeros(1, dtype=torch.int8)


def add_unowned(tensors: dict[str, torch.Tensor]) -> None:
    tensors["optimizer.state"] = torch.zeros(2)


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["segmenter.head.bias"].fill_(float("inf"))


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.head.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (drop, "does not fit residual-unet: head.bias is missing"),
        (reshape, r"head.bias is \(2,\), wanted \(1,\)"),
        (add, "more is of no use"),
        (retype, "head.bias is torch.int8, wanted torch.float32"),
        (add_unowned, "optimizer.state belongs to no network"),
        (infinite, "segmenter.head.bias holds NaN or infinity"),
        (not_a_number, "classifier.head.weight holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tiny_package: Path, change: Callable[[dict[str, torch.Tensor]], None], word: str
) -> None:
    replace_tensors(tiny_package, "weights.safetensors", change)
    with pytest.raises(PackageError, match=word):
        package.load(tiny_package)


def test_an_architecture_larger_than_its_weights_is_never_built(tiny_package: Path) -> None:
    # About 5e8 bytes, within every single bound.
    widths = [128, 256, 512, 1024, 1024]
    edit(tiny_package, lambda d: d["classifier"].update(arguments={"widths": widths, "blocks": 8}))
    with pytest.raises(PackageError, match="does not fit residual-classifier"):
        package.load(tiny_package)


def safetensors_bytes(
    header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


_FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        safetensors_bytes({"classifier.a": _FOUR}, b"\0" * 4, length=2**63),
        safetensors_bytes({"classifier.a": _FOUR}, b"\0" * 4, length=10**9),
        safetensors_bytes({"classifier.a": _FOUR | {"shape": [10**6]}}, b"\0" * 4),
        safetensors_bytes({"classifier.a": _FOUR | {"shape": [2**40, 2**40]}}, b"\0" * 4),
        safetensors_bytes({"classifier.a": _FOUR | {"shape": [-1]}}, b"\0" * 4),
        safetensors_bytes({"classifier.a": _FOUR | {"data_offsets": [0, 4000]}}, b"\0" * 4),
        safetensors_bytes({"classifier.a": _FOUR | {"data_offsets": [4, 0]}}, b"\0" * 4),
        # Two tensors share their bytes.
        safetensors_bytes({"classifier.a": _FOUR, "classifier.b": _FOUR}, b"\0" * 4),
        # Bytes that belong to no tensor.
        safetensors_bytes({"classifier.a": _FOUR}, b"\0" * 8),
        safetensors_bytes({"classifier.a": _FOUR | {"dtype": "O"}}, b"\0" * 4),
        safetensors_bytes({"classifier.a": _FOUR | {"dtype": "F4", "shape": [8]}}, b"\0" * 4),
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes(b'{"a"'),
        safetensors_bytes({}),
        safetensors_bytes({"classifier.a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors"])
def test_a_safetensors_file_with_a_false_header_is_refused(
    tiny_package: Path, name: str, data: bytes
) -> None:
    replace_bytes(tiny_package, name, data)
    with pytest.raises(PackageError, match=name):
        package.load(tiny_package)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop("classifier.output"), "classifier.input or classifier.output is absent"),
        (lambda t: t.update({"classifier.input": torch.zeros(0, 1, 32, 32)}), "holds 0 images"),
        (lambda t: t.update({"classifier.input": torch.zeros(17, 1, 32, 32)}), "holds 17 images"),
        (lambda t: t.update({"classifier.input": torch.zeros(())}), "holds 0 images"),
        (
            lambda t: t.update({"classifier.input": torch.zeros(2, 1, 64, 64)}),
            r"classifier.input \(2, 1, 64, 64\)",
        ),
        (lambda t: t.update({"classifier.input": torch.zeros(2, 1, 32, 32).long()}), "int64"),
        (lambda t: t.update({"segmenter.output": torch.zeros(2, 1)}), r"segmenter.output \(2, 1\)"),
        (
            lambda t: t["classifier.input"].fill_(float("nan")),
            "golden replay of the classifier is nan off",
        ),
        (
            lambda t: t["segmenter.output"].fill_(float("nan")),
            "golden replay of the segmenter is nan off",
        ),
    ],
)
def test_unusable_golden_tensors_are_refused(
    tiny_package: Path, change: Callable[[dict[str, torch.Tensor]], object], word: str
) -> None:
    replace_tensors(tiny_package, "golden.safetensors", change)
    with pytest.raises(PackageError, match=word):
        package.load(tiny_package)


def test_a_classifier_cannot_stand_in_for_a_segmenter(tiny_package: Path) -> None:
    weights = load_file(tiny_package / "weights.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("classifier.")}
    copied = {
        name.replace("classifier.", "segmenter.", 1): value.clone() for name, value in kept.items()
    }

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        tensors.clear()
        tensors.update(kept | copied)

    replace_tensors(tiny_package, "weights.safetensors", swap)
    edit(
        tiny_package,
        lambda d: d["segmenter"].update(
            architecture=d["classifier"]["architecture"], arguments=dict(TINY, widths=[8] * 5)
        ),
    )
    with pytest.raises(
        PackageError, match=r"residual-classifier gives \(2, 1\); a segmenter must give"
    ):
        package.load(tiny_package)


@pytest.mark.parametrize(("text", "key"), [("", "the document"), ("classifier:", "classifier")])
def test_yaml_without_keys_is_told_that_keys_are_wanted(
    tiny_package: Path, text: str, key: str
) -> None:
    (tiny_package / "model.yaml").write_text(text)
    with pytest.raises(package.PackageError, match=f"{key}: None found; keys with their values"):
        package.load(tiny_package)
