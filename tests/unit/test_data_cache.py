"""The image cache: each image is decoded once, and an unfinished cache of a killed or concurrent
process is never used.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference.preprocess import fit
from training import data as labelled
from training.data import PhantomCase, cache, pool
from training.data.cases import Case


def phantoms(count: int = 4) -> list[Case]:
    return list(labelled.phantoms(count, size=64))


def test_images_masks_and_labels_are_prepared(tmp_path: Path) -> None:
    cases = phantoms()
    progress: list[tuple[int, int]] = []
    prepared = cache.prepare(cases, 32, tmp_path, done=lambda *so_far: progress.append(so_far))
    assert prepared.images.shape == prepared.masks.shape == (4, 32, 32)
    assert prepared.images.dtype == prepared.masks.dtype == np.uint8
    assert prepared.labels.tolist() == [1, 0, 1, 0]

    for number, case in enumerate(cases):
        assert np.abs(prepared.images[number] / 255 - fit(case.pixels(), 32).pixels).max() < 0.003
        assert (
            np.abs(
                prepared.masks[number] / 255 - fit(case.mask().astype(np.float32), 32).pixels
            ).max()
            < 0.003
        )

    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_second_preparation_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache.prepare(phantoms(), 32, tmp_path)
    monkeypatch.setattr(PhantomCase, "pixels", lambda _: pytest.fail("decoded again"))
    again = cache.prepare(phantoms(), 32, tmp_path)
    assert np.array_equal(first.images, again.images)
    # Torch warns about read-only arrays, and pytest turns the warning into an error.
    torch.from_numpy(again.images)[0] = 7
    assert not np.array_equal(cache.prepare(phantoms(), 32, tmp_path).images[0], again.images[0])


def test_another_image_side_or_codec_is_another_cache(tmp_path: Path) -> None:
    cases = phantoms(2)
    first = cache.prepare(cases, 32, tmp_path).images
    assert not np.array_equal(cache.prepare(cases[::-1], 32, tmp_path).images, first)
    assert cache.prepare(cases, 16, tmp_path).images.shape == (2, 16, 16)
    equal = cache.prepare(cases, 32, tmp_path, equalise=True).images
    assert 0 < np.abs(equal.astype(int) - first).mean() < 8
    # By default (None), images are equalised if only some of them are copies.
    mixed = [cases[0], replace(cases[1], as_published=False)]
    assert np.array_equal(cache.prepare(mixed, 32, tmp_path).images, equal)


def test_a_replaced_file_is_decoded_again(tmp_path: Path) -> None:
    home = tmp_path / "data"
    home.mkdir()
    (home / "labels.csv").write_text("image,label\na.png,1\n")

    for value in (np.eye(20), np.eye(20)[::-1]):
        Image.fromarray((value * 255).astype(np.uint8)).save(home / "a.png")
        prepared = cache.prepare(labelled.read("table", home), 20, tmp_path / "cache")
        assert np.array_equal(prepared.images[0] > 127, value > 0)

    assert prepared.masks is None
    # The modification times of the files play no part.
    shutil.copytree(home, tmp_path / "copy")
    copied, there = (
        labelled.read("table", folder)[0].identity() for folder in (tmp_path / "copy", home)
    )
    assert copied == there


def test_an_unknown_mask_is_prepared_as_empty(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label,mask\na.png,1,m.png\nb.png,1,\nc.png,0,\n")
    for name in "abcm":
        Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / f"{name}.png")
    cases = labelled.read("table", tmp_path)
    assert [case.mask_known for case in cases] == [True, False, True]
    prepared = cache.prepare(cases, 20, tmp_path / "cache")
    assert prepared.masks is not None
    assert [int(mask.sum()) for mask in prepared.masks] == [20 * 255, 0, 0]


def test_an_image_that_cannot_be_read_leaves_no_cache(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\na.png,1\n")
    (tmp_path / "a.png").write_text("no picture")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
            cache.prepare(labelled.read("table", tmp_path), 20, tmp_path / "cache")


class MaskDespiteLabel(PhantomCase):
    """Its label says negative, but it has a mask."""

    def mask(self) -> np.ndarray:
        return np.ones((self.size, self.size), dtype=bool)


def test_a_mask_that_contradicts_its_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x: label 0 found, and a mask that is not empty"):
        cache.prepare(
            [MaskDespiteLabel(image_id="x", patient="", label=0, seed=0, size=64)], 32, tmp_path
        )


def test_space_is_reserved_for_images_and_not_for_empty_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the negatives.
    cache.prepare(phantoms(12)[1::2], 64, tmp_path)
    used = {path.name.split("-")[1]: path.stat().st_blocks * 512 for path in tmp_path.glob("*.npy")}
    assert used["images.npy"] >= 6 * 64 * 64
    assert used["masks.npy"] <= 4096 * 2

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device, 2 MiB wanted.*full.*images"):
        cache.prepare(phantoms(2), 1024, tmp_path / "full")
    assert [path.suffix for path in (tmp_path / "full").iterdir()] == [".lock"]


class Slow(PhantomCase):
    """Logs that its decoding has begun, then takes long."""

    def pixels(self) -> np.ndarray:
        with Path(os.environ["DECODED"]).open("a") as file:
            file.write(f"{self.seed}\n")
        time.sleep(0.3)
        return super().pixels()


def _prepare(folder: Path, log: Path) -> None:
    os.environ["DECODED"] = str(log)
    cases = [
        Slow(image_id=str(seed), patient="", label=seed % 2, seed=seed, size=64)
        for seed in range(4)
    ]
    cache.prepare(cases, 32, folder)


def test_after_a_kill_one_of_two_processes_decodes_everything_again(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "decoded"
    log.touch()
    killed = context.Process(target=_prepare, args=(tmp_path / "cache", log))
    killed.start()

    while len(log.read_text().split()) < 2:
        assert killed.is_alive()
        time.sleep(0.01)

    assert killed.pid
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    log.write_text("")
    both = [context.Process(target=_prepare, args=(tmp_path / "cache", log)) for _ in range(2)]
    for one in both:
        one.start()

    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]

    # One of the two processes decoded every image again.
    assert log.read_text().split() == ["0", "1", "2", "3"]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_items_are_shared_among_processes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    progress: list[tuple[int, int]] = []
    others: list[int] = []

    def done(so_far: int, count: int) -> None:
        progress.append((so_far, count))
        others.append(len(multiprocessing.active_children()))

    assert pool.each(str, range(1003), done) == [str(number) for number in range(1003)]
    assert progress == sorted(progress)
    assert progress[-1] == (1003, 1003)
    # This process is the second worker.
    assert max(others) == 1
    assert not multiprocessing.active_children()


def test_an_error_in_another_process_stops_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    progress: list[int] = []
    # The other process takes the first item, while this process starts at the last.
    with pytest.raises(ValueError, match="sleep length"):
        pool.each(time.sleep, [-1, *[0.02] * 9_999], lambda so_far, _: progress.append(so_far))
    assert 0 < progress[-1] < 9_000
    assert not multiprocessing.active_children()


def test_several_processes_write_the_same_files_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = phantoms(pool.WORTH_PROCESSES)
    made = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        folder = tmp_path / str(len(cores))
        cache.prepare(cases, 32, folder)
        made.append({path.name: path.read_bytes() for path in folder.glob("*.np[yz]")})
    assert len(made[0]) == 3
    assert made[0] == made[1]


def test_a_full_disk_is_reported_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Masks take no space until they are written.
    monkeypatch.setattr(cache, "_write", partial(_write_to_full, cache._write))
    with pytest.raises(OSError, match=r"No space left on device.*-masks\.part"):
        cache.prepare(phantoms(2), 32, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def _write_to_full(write: Callable[..., None], path: Path, at: int, pixels: np.ndarray) -> None:
    if "masks" in path.name:
        path.unlink()
        path.symlink_to("/dev/full")
    write(path, at, pixels)
