"""The shadow model: compared, never sent, and no risk to a real image."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from daemon import config as settings
from daemon import service
from daemon.analyse.shadow import Loaded, ShadowLimits, ShadowWorker, UnusableModelError, load
from daemon.cli import main
from daemon.commands import drift as command
from daemon.config import Config, Shadow
from daemon.drift import comparison
from daemon.ledger import Arrival, Completion, Ledger
from daemon.spool import Spool
from inference import package
from tests import models
from tools.peers.waiting import wait_until
from training import phantom

MODEL, SHADOW = "serving 1.0.0 aaaa", "candidate 2.0.0 bbbb"


class Bench:
    """A ledger and a spool with images that the model has answered, and their shadow."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.spool = Spool(folder / "spool")
        self.asked: list[bytes] = []
        self.worker = ShadowWorker(lambda: self.loaded, ledger, self.spool)
        self.loaded = Loaded(SHADOW, self)

    def analyse(self, files: Sequence[bytes], _: datetime) -> list[Any]:
        """As a Pipeline: the answer stands in the file."""
        (data,) = files
        self.asked.append(data)
        if data == b"breaks":
            raise RuntimeError("Doe^Jane")
        if data == b"no chest":
            return [SimpleNamespace(finding=None, reason="not_a_frontal_chest")]
        probability = float(data)
        finding = SimpleNamespace(probability=probability, positive=probability >= 0.5)
        return [SimpleNamespace(finding=finding, reason=None)]

    def receive(self, uid: str, data: bytes) -> None:
        name = self.spool.write(data)
        self.ledger.receive([Arrival(name, "1.2", uid, "1.2", "XRAY1", "dimse", 1, len(data))])

    def end(self, uid: str, data: bytes, probability: float, model: str = MODEL) -> None:
        """An image whose file says what the shadow will answer."""
        self.receive(uid, data)
        (job,) = self.ledger.claim_images("me", 1)
        done = Completion(
            "analysed", uid, model=model, probability=probability, positive=probability >= 0.5
        )
        self.ledger.complete(job, done, {"pacs": ("SC", "SEG")})


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path) -> Bench:
    return Bench(ledger, tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """On SQLite alone."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield Bench(ledger, tmp_path)
    ledger.close()


def test_answers_are_compared_with_the_models_and_with_reports(bench: Bench) -> None:
    assert comparison(bench.ledger.inspect) is None
    bench.end("1.2.1", b"0.9", 0.9)
    bench.end("1.2.2", b"0.2", 0.8)
    bench.end("1.2.3", b"0.7", 0.1)
    bench.end("1.2.4", b"0.1", 0.2)
    bench.end("1.2.5", b"no chest", 0.2)
    bench.end("1.2.6", b"breaks", 0.2)
    bench.end("1.2.7", b"0.3", 0.3, model=SHADOW)
    while bench.worker.turn(bench.loaded):
        pass
    assert len(bench.asked) == 6
    bench.ledger.drift.tell_reports({"1.2.1": True, "1.2.2": False, "1.2.3": True, "1.2.5": True})

    found = comparison(bench.ledger.inspect)
    assert found is not None
    pairs = found.pairs
    assert (pairs.both_positive, pairs.only_model, pairs.only_shadow) == (1, 1, 1)
    assert (pairs.both_negative, pairs.unanswered) == (1, 2)
    assert found.agreement[0] == 0.5
    model, shadow = found.model_with_reports, found.shadow_with_reports
    assert model is not None
    assert shadow is not None
    # The report on the image that the shadow did not answer is in neither.
    assert model.reports == shadow.reports == 3
    assert (model.sensitivity[0], shadow.sensitivity[0]) == (0.5, 1.0)
    assert (model.auc, shadow.auc) == (0.5, 1.0)

    lines = "\n".join(command.lines(command.look(bench.ledger.inspect, 8)))
    assert "shadow candidate 2.0.0 (bbbb) beside serving 1.0.0 (aaaa)" in lines
    assert "shadow: area under the ROC curve: 1.000" in lines


def test_nothing_of_a_shadow_is_delivered_and_a_break_is_no_images_fault(bench: Bench) -> None:
    bench.end("1.2.1", b"breaks", 0.9)
    bench.end("1.2.2", b"0.1", 0.9)
    before = bench.ledger.inspect.counts(), bench.ledger.inspect.history("1.2.1")
    files = sorted(path.name for path in bench.spool.folder.rglob("*"))
    while bench.worker.turn(bench.loaded):
        pass
    assert len(bench.asked) == 2
    assert (bench.ledger.inspect.counts(), bench.ledger.inspect.history("1.2.1")) == before
    assert sorted(path.name for path in bench.spool.folder.rglob("*")) == files
    assert bench.ledger.claim_deliveries("pacs", "courier", 9) == []


def test_it_looks_at_nothing_while_an_image_waits_or_is_in_work(bench: Bench) -> None:
    bench.end("1.2.1", b"0.9", 0.9)
    bench.receive("1.2.2", b"0.9")
    assert not bench.worker.turn(bench.loaded)
    (job,) = bench.ledger.claim_images("me", 1)
    assert not bench.worker.turn(bench.loaded)
    bench.ledger.complete(job, Completion("not_analysed", "d", reason="view"), {})
    assert bench.worker.turn(bench.loaded)
    assert not bench.worker.turn(bench.loaded)


_HANGS = """
import sys, time
from pathlib import Path
from daemon.analyse.shadow import Loaded, ShadowLimits, ShadowWorker
from daemon.ledger import Ledger
from daemon.spool import Spool

class Hanging:
    def analyse(self, files, at):
        time.sleep(600)

loaded = Loaded(sys.argv[3], Hanging())
worker = ShadowWorker(lambda: loaded, Ledger(sys.argv[1]), Spool(Path(sys.argv[2])),
                      ShadowLimits(image_s=0.05))
worker.turn(loaded)
"""


def test_a_shadow_that_hangs_ends_its_process_and_goes_on_after_that_image(small: Bench) -> None:
    small.end("1.2.1", b"0.9", 0.9)
    small.end("1.2.2", b"0.9", 0.9)
    arguments = [small.ledger.url, str(small.spool.folder), SHADOW]
    ended = subprocess.run(
        [sys.executable, "-c", _HANGS, *arguments], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr

    while small.worker.turn(small.loaded):
        pass
    found = comparison(small.ledger.inspect)
    assert found is not None
    assert (found.images, found.pairs.unanswered) == (1, 1)


def test_a_role_that_is_to_stop_leaves_a_hanging_image_behind(small: Bench) -> None:
    small.end("1.2.1", b"0.9", 0.9)
    is_asked, goes_on = threading.Event(), threading.Event()

    class Hanging:
        def analyse(self, files: Sequence[bytes], _: datetime) -> list[Any]:
            is_asked.set()
            goes_on.wait()
            raise RuntimeError

    stop = threading.Event()
    loaded = Loaded(SHADOW, Hanging())
    limits = ShadowLimits(idle_s=0.01, drain_s=0.01)
    worker = ShadowWorker(lambda: loaded, small.ledger, small.spool, limits)
    role = threading.Thread(target=worker.run, args=(stop, lambda _: None))
    role.start()
    assert is_asked.wait(60)
    stop.set()
    role.join(60)
    assert not role.is_alive()

    # Its thread must not outlive this test.
    goes_on.set()
    wait_until("its thread has ended", lambda: not _shadow_threads())


def _shadow_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "shadow"]


def test_a_package_that_cannot_be_used_is_waited_for(small: Bench) -> None:
    tries: list[int] = []

    def make() -> Loaded:
        tries.append(1)
        if len(tries) == 1:
            raise UnusableModelError("no package")
        if len(tries) == 2:
            raise ZeroDivisionError
        return small.loaded

    stop, ready = threading.Event(), threading.Event()
    worker = ShadowWorker(make, small.ledger, small.spool, ShadowLimits(0.01, 0.01))
    role = threading.Thread(target=worker.run, args=(stop, lambda _: ready.set()))
    role.start()
    assert ready.wait(60)
    stop.set()
    role.join(60)
    assert len(tries) == 3


def test_a_real_package_answers_and_makes_no_object(small: Bench, tmp_path: Path) -> None:
    folder = models.write(tmp_path / "candidate", models.tiny_networks())
    picture = phantom.write(phantom.draw(3, False, 64), tmp_path / "sent.dcm")
    small.end("1.2.1", picture.read_bytes(), 0.9)
    loaded = load(Config(), Shadow(model=str(folder)))
    assert small.worker.turn(loaded)

    found = comparison(small.ledger.inspect)
    assert found is not None
    assert found.images == 1
    assert found.shadow.startswith("tiny 1.0.0 (")
    (outcome,) = loaded.pipeline.analyse([picture.read_bytes()], datetime(2000, 1, 1))
    assert outcome.results == ()
    with pytest.raises(UnusableModelError):
        load(Config(), Shadow(model=str(tmp_path / "absent")))


def test_serve_runs_it_where_the_settings_name_one_and_needs_it_not() -> None:
    assert service.roles_of(Config()) == ["receive", "analyse", "deliver"]
    shadowed = Config(shadow=Shadow(model="/srv/candidate"))
    assert service.roles_of(shadowed) == ["receive", "analyse", "deliver", "shadow"]
    assert not service.is_needed("shadow")


# -- promotion -------------------------------------------------------------------------------------


@pytest.fixture
def promotion(tmp_path: Path) -> Callable[..., int]:
    """`pleura model promote` with a model `serving` and a shadow `candidate`."""
    networks = models.tiny_networks()
    models.write(tmp_path / "serving", networks, "serving")
    models.write(tmp_path / "candidate", networks, "candidate")
    Ledger(f"sqlite:///{tmp_path}/ledger.db").close()

    def promote(*options: str, **changed: Any) -> int:
        values: dict[str, Any] = {
            "ledger": f"sqlite:///{tmp_path}/ledger.db",
            "spool": str(tmp_path / "spool"),
            "model": str(tmp_path / "serving"),
            "shadow": {"model": str(tmp_path / "candidate")},
            "audit": {"file": str(tmp_path / "audit.log")},
        }
        file = tmp_path / "pleura.yaml"
        file.write_text(yaml.safe_dump(values | changed))
        settings.load(file)
        return main(["model", "promote", "-c", str(file), *options])

    return promote


def test_a_promotion_replaces_the_package_and_has_a_way_back(
    promotion: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def serving() -> str:
        return package.read_manifest(tmp_path / "serving").id

    assert promotion() == 0
    assert serving() == "candidate"
    assert package.read_manifest(tmp_path / "serving.before").id == "serving"
    assert "pleura reload" in capsys.readouterr().out
    assert (tmp_path / "candidate" / "model.yaml").is_file()

    assert promotion("--back") == 0
    assert serving() == "serving"
    assert sorted(path.name for path in tmp_path.glob("serving*")) == ["serving", "serving.before"]

    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    rows, _ = ledger.claim_audit("me", 9)
    ledger.close()
    told = [row.facts["what"] for row in rows if row.event == "command"]
    assert told[0].startswith(f"model promote: {tmp_path}/serving is now candidate 1.0.0 ")
    assert told[1].startswith(f"model promote --back: {tmp_path}/serving is serving 1.0.0 ")


def test_a_promotion_that_cannot_be_changes_nothing(
    promotion: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promotion(model="default") == 2
    assert f"model: {tmp_path}/candidate" in capsys.readouterr().err
    assert promotion(shadow=None) == 2
    assert promotion("--back") == 2

    (tmp_path / "candidate" / "weights.safetensors").write_bytes(b"damaged")
    assert promotion() == 2
    assert package.read_manifest(tmp_path / "serving").id == "serving"
    assert [path.name for path in tmp_path.glob("serving*")] == ["serving"]
