"""The inference engine answers every image, whichever library runs the networks and whatever fails
below it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference import engines, package
from inference.engine import Engine, EngineBrokenError, choose_device
from inference.engines import PLAIN, Candidate, Plan, native, trial
from inference.manifest import Comparison, Precision
from inference.networks.ensemble import Ensemble
from inference.package import Package
from tests import models

CPU = torch.device("cpu")
# Changes a batch's logits.
Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@pytest.fixture
def tiny(tiny_package: Path) -> Package:
    return package.load(tiny_package)


def pictures(number: int) -> list[NDArray[np.float32]]:
    """Images of different sizes and contents."""
    draw = np.random.default_rng(1)
    return [draw.random((40 + 3 * i, 50), dtype=np.float32) for i in range(number)]


class Failing(nn.Module):
    """A network that raises the exception that `fault` returns for the batch size, if any."""

    def __init__(self, network: nn.Module, fault: Callable[[int], Exception | None]) -> None:
        super().__init__()
        self.network = network
        self.fault = fault
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if error := self.fault(len(x)):
            raise error
        return torch.as_tensor(self.network(x))


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The tiny package on another engine, converted once because that takes a second or two."""
    folder = models.write(tmp_path_factory.mktemp("other") / "tiny", models.tiny_networks())
    engine = Engine(package.load(folder), CPU, request.param)
    engine.tune()
    assert set(engine.running.values()) == {request.param}
    return engine


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("number", [1, 3, 8, 11])
def test_other_engines_answer_as_torch_does(tiny: Package, other: Engine, number: int) -> None:
    plain = Engine(tiny, CPU, "torch")
    images = pictures(number)
    assert other.classify(images) == pytest.approx(plain.classify(images), abs=1e-4)
    for one, wanted in zip(other.segment(images), plain.segment(images), strict=True):
        assert one.shape == wanted.shape
        assert np.abs(one - wanted).max() < 1e-4


@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_other_engines_give_the_logit_of_a_small_mean_probability(name: str) -> None:
    # Each pixel's logit is the pixel itself. Sigmoids of the outer ones round to 0 and 1.
    ensemble = Ensemble([nn.Identity(), nn.Identity()], [None, None])
    logits = np.linspace(-40, 40, 2 * 32 * 32, dtype=np.float32).reshape(2, 1, 32, 32)
    runner = engines.build(Candidate(name), ensemble, Plan(CPU, 32))
    assert np.abs(runner(logits) - logits).max() < 1e-4


@pytest.mark.xdist_group("engines")
def test_openvino_answers_batches_that_it_was_not_compiled_for(tiny: Package) -> None:
    plain = engines.build(PLAIN, tiny.classifier, Plan(CPU, 32))
    runner = engines.build(Candidate("openvino"), tiny.classifier, Plan(CPU, 32, batch=4))
    images = np.random.default_rng(1).random((6, 1, 32, 32), dtype=np.float32)
    for size in range(1, 7):
        found = runner(images[:size])
        assert found.shape == (size, 1)
        assert np.abs(found - plain(images[:size])).max() < 1e-4


@pytest.mark.xdist_group("engines")
def test_an_engine_starts_on_torch_and_switches_one_network_at_a_time(tiny: Package) -> None:
    engine = Engine(tiny, CPU, "openvino")
    images = pictures(2)
    running = [engine.running]
    first = engine.classify(images)
    while engine.tune_step():
        assert engine.classify(images) == pytest.approx(first, abs=1e-4)
        running.append(engine.running)
    assert set(running[0].values()) == {"torch"}
    assert {"classifier": "openvino", "segmenter": "torch"} in running
    assert set(engine.running.values()) == {"openvino"}
    assert not engine.tune_step()


def test_without_a_plausibility_network_every_image_is_plausible(tiny: Package) -> None:
    assert Engine(tiny, CPU).plausible(pictures(3)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_stays_at_what_fits(
    tiny: Package, error: Exception
) -> None:
    images = pictures(8)
    wanted = Engine(tiny, CPU).classify(images)
    module = Failing(tiny.classifier, lambda size: error if size > 2 else None)
    engine = Engine(replace(tiny, classifier=module), CPU, max_batch=8)
    assert engine.classify(images) == pytest.approx(wanted, abs=1e-5)
    assert module.sizes == [8, 4, 2, 2, 2, 2]
    module.sizes.clear()
    assert engine.classify(images) == pytest.approx(wanted, abs=1e-5)
    assert module.sizes == [2, 2, 2, 2]


def test_an_image_too_large_for_memory_raises(tiny: Package) -> None:
    module = Failing(tiny.classifier, lambda size: torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        Engine(replace(tiny, classifier=module), CPU).classify(pictures(4))
    assert module.sizes == [4, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_a_poisoned_context_ends_the_engine_and_blames_no_image(
    tiny: Package, error: Exception
) -> None:
    module = Failing(tiny.classifier, lambda size: error)
    engine = Engine(replace(tiny, classifier=module), CPU, "openvino")
    with pytest.raises(EngineBrokenError):
        engine.classify(pictures(4))
    assert module.sizes == [4]
    with pytest.raises(EngineBrokenError):
        engine.tune()


def test_nan_is_never_an_answer(tiny: Package) -> None:
    with torch.no_grad():
        tiny.classifier.head.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ArithmeticError):
        Engine(tiny, CPU).classify(pictures(1))


class Imitation:
    """A fake engine: torch's answers, changed by `change`."""

    made = 0

    def __init__(self, module: nn.Module, plan: Plan, change: Change) -> None:
        type(self).made += 1
        self._plain = native.Eager(module, plan)
        self.change = change

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.change(self._plain(batch))


def pretend(monkeypatch: pytest.MonkeyPatch, change: Change = lambda x: x) -> None:
    """Replace OpenVINO with an Imitation."""
    monkeypatch.setattr(Imitation, "made", 0)
    monkeypatch.setitem(
        engines.ENGINES, "openvino", lambda module, plan: Imitation(module, plan, change)
    )
    monkeypatch.setattr("inference.engines.onnxruntime.is_installed", lambda: False)


def broken(_: NDArray[np.float32]) -> NDArray[np.float32]:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x + 0.002, "off torch float32"),
        (lambda x: x * np.nan, "off torch float32"),
        (lambda x: x[:1], "shape"),
        (broken, "no such kernel"),
    ],
)
@pytest.mark.parametrize("wanted", ["auto", "openvino"])
def test_an_engine_with_wrong_answers_is_left_out_with_a_warning(
    tiny: Package,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wanted: str,
    change: Change,
    reason: str,
) -> None:
    pretend(monkeypatch, change)
    engine = Engine(tiny, CPU, wanted)
    engine.tune()
    assert set(engine.running.values()) == {"torch"}
    assert [record.levelno for record in caplog.records if reason in record.message] == [
        logging.WARNING
    ] * 2


@pytest.mark.parametrize("late", [broken, lambda x: x * np.nan])
def test_an_engine_that_fails_in_service_is_replaced_by_torch(
    tiny: Package, monkeypatch: pytest.MonkeyPatch, late: Change
) -> None:
    faults: list[Change] = []
    pretend(monkeypatch, lambda x: faults[0](x) if faults else x)
    engine = Engine(tiny, CPU, "openvino")
    engine.tune()
    images = pictures(3)
    before = engine.classify(images)
    faults.append(late)
    assert engine.classify(images) == pytest.approx(before)
    assert engine.running == {"classifier": "torch", "segmenter": "openvino"}


def test_a_missing_engine_is_logged_and_torch_is_used(
    tiny: Package, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setattr(f"inference.engines.{name}.is_installed", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")

    for wanted, reason in (
        ("openvino", "install Pleura's extra"),
        ("onnxruntime", "install Pleura's extra"),
        ("compile", "C++ compiler"),
    ):
        engine = Engine(tiny, CPU, wanted)
        engine.tune()
        assert set(engine.running.values()) == {"torch"}
        assert reason in caplog.text

    caplog.clear()
    Engine(tiny, CPU, "auto").tune()
    assert "left out" not in caplog.text


class Clock:
    """Time that advances only when a network runs, by a second for each image, or when a test sets
    it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tiny: Package) -> None:
        self.now = 0.0
        monkeypatch.setattr(trial.time, "perf_counter", lambda: self.now)
        for network in tiny.networks.values():
            network.forward = self._passing(network.forward)  # type: ignore[method-assign]

    def _passing(self, inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            self.now += len(x)
            return torch.as_tensor(inner(x))

        return forward


@pytest.mark.parametrize(("gain_s", "chosen"), [(0.5, "openvino"), (0.0, "torch"), (-1.0, "torch")])
def test_auto_takes_the_faster_engine(
    tiny: Package, monkeypatch: pytest.MonkeyPatch, gain_s: float, chosen: str
) -> None:
    clock = Clock(monkeypatch, tiny)

    def quicker(x: NDArray[np.float32]) -> NDArray[np.float32]:
        clock.now -= gain_s * len(x)
        return x

    pretend(monkeypatch, quicker)
    engine = Engine(tiny, CPU, "auto")
    engine.tune()
    assert set(engine.running.values()) == {chosen}


def test_auto_chooses_separately_for_one_image_and_for_batches(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, tiny)
    asked: list[int] = []

    def quicker_alone(x: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(x))
        clock.now += -0.5 if len(x) == 1 else 0.5 * len(x)
        return x

    pretend(monkeypatch, quicker_alone)
    for start in ("measured", "remembered"):
        engine = Engine(tiny, CPU, cache=tmp_path)
        engine.tune()
        assert set(engine.running.values()) == {"openvino for one image, torch for more"}, start
        asked.clear()
        for number in (1, 8, 3):
            engine.classify(pictures(number))
        assert asked == [1], start


def test_the_choice_is_cached_for_this_model_and_machine_only(
    tiny: Package, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []
    fastest = trial.Trial.fastest
    monkeypatch.setattr(
        trial.Trial, "fastest", lambda self, them: timed.append(self.role) or fastest(self, them)
    )
    pretend(monkeypatch)

    def start(one: Package, **changes: int) -> Engine:
        timed.clear()
        engine = Engine(one, CPU, cache=tmp_path / "new" / "cache", **changes)
        engine.tune()
        return engine

    first = start(tiny)
    assert timed == ["classifier", "segmenter"]
    assert start(package.load(tiny_package)).running == first.running
    assert timed == []
    start(tiny, max_batch=2)
    assert timed == ["classifier", "segmenter"]
    # Give the package another digest.
    package.amend(tiny_package, {"metrics": {"auc": 0.5}})
    start(package.load(tiny_package))
    assert timed == ["classifier", "segmenter"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    start(tiny)
    assert timed == ["classifier", "segmenter"]
    start(tiny)
    assert timed == []


def test_a_cached_choice_is_compared_with_torch_again(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, tiny)
    shift = [0.0]

    def quicker(x: NDArray[np.float32]) -> NDArray[np.float32]:
        clock.now -= 0.5 * len(x)
        return x + np.float32(shift[0])

    pretend(monkeypatch, quicker)
    # An engine that failed once is tried again at the next start.
    for wanted in ("openvino", "openvino", "torch", "openvino"):
        shift[0] = 0.0 if wanted == "openvino" else 0.5
        engine = Engine(tiny, CPU, cache=tmp_path)
        engine.tune()
        assert set(engine.running.values()) == {wanted}


@pytest.mark.parametrize("content", [None, "[1, 2]", "{", '{"x": 1}', "[" * 100_000])
def test_an_unusable_cache_is_ignored(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    pretend(monkeypatch)
    cache = tmp_path / "cache"
    if content is None:
        cache.write_text("a file where the folder should be")
    else:
        cache.mkdir()
        (cache / "engines.json").write_text(content)
    engine = Engine(tiny, CPU, cache=cache)
    engine.tune()
    assert Imitation.made == 2
    assert len(engine.classify(pictures(2))) == 2


def test_bf16_is_tried_only_where_the_package_and_the_device_allow_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for able in (True, False):
        monkeypatch.setattr(native, "computes_bf16", lambda _, able=able: able)
        for allowed in (True, False):
            for device, fp32 in (
                (CPU, {"openvino", "onnxruntime"}),
                (torch.device("cuda:0"), set()),
            ):
                tried = set(engines.candidates("auto", device, allowed))
                assert {one.engine for one in tried if not one.bf16} == fp32
                assert any(one.bf16 for one in tried) == (able and allowed)
            for wanted in ("openvino", "onnxruntime", "compile", "torch"):
                assert not any(one.bf16 for one in engines.candidates(wanted, CPU, allowed))


def test_bf16_is_timed_only_for_the_network_validated_in_it(
    tiny: Package, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "computes_bf16", lambda _: True)
    pretend(monkeypatch)
    caplog.set_level(logging.INFO, "pleura.engine")
    validated = Precision(
        bf16={"classifier": Comparison(metric="AUC, made up", fp32=0.8, bf16=0.8, images=9)}
    )
    engine = Engine(
        replace(tiny, manifest=tiny.manifest.model_copy(update={"precision": validated})), CPU
    )
    engine.tune()
    timed = {line.split(":")[0]: line for line in caplog.messages if "ms per image" in line}
    assert "torch bf16" in timed["classifier"]
    assert "openvino bf16" in timed["classifier"]
    assert "bf16" not in timed["segmenter"]


def test_without_a_gpu_the_cpu_is_used_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == CPU
    assert not caplog.records
    for wanted in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(ValueError, match=f"{wanted} found.*no GPU.*auto, cpu"):
            choose_device(wanted)
    assert choose_device("auto") == CPU
    for wanted in ("tpu", "cuda:x", "mps", "", "meta"):
        with pytest.raises(ValueError, match="allowed"):
            choose_device(wanted)


def test_a_gpu_is_selected_by_name_and_a_wrong_number_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="cuda:0 to 1"):
        choose_device("cuda:2")
