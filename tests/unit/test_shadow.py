"""The shadow model: its answers are compared and never sent, and it is no risk to real images."""

from __future__ import annotations

import errno
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from daemon import config as settings
from daemon import service
from daemon.analyse import answering
from daemon.analyse.answering import Answer, UnusableModelError
from daemon.analyse.shadow import EndedError, Process, ShadowLimits, ShadowWorker
from daemon.analyse.shadow import command as shadow_command
from daemon.cli import main
from daemon.commands import drift as command
from daemon.commands.promote import PromotionHooks, promote, put_back
from daemon.config import Config, Shadow
from daemon.drift import comparison
from daemon.exits import CannotStartError
from daemon.ledger import Arrival, Completion, Ledger
from daemon.metrics.exposition import exposition
from daemon.spool import Spool
from inference import package
from inference.admission import Rules
from tests import models
from tools.peers.waiting import wait_until
from training import phantom

MODEL, SHADOW = "serving 1.0.0 aaaa", "candidate 2.0.0 bbbb"
LIMITS = ShadowLimits(idle_s=0.01, image_s=0.5, first_pause_s=0.01, longest_pause_s=0.01)


class Bench:
    """A ledger and a spool with images that the model has answered, and a shadow model for them."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.spool = Spool(folder / "spool")
        self.asked: list[bytes] = []
        self.worker = ShadowWorker(lambda: self, ledger, self.spool, LIMITS)

    def look(self) -> bool:
        return self.worker.turn(self, SHADOW)

    # -- the interface of a networks' process: the answer is the file's content -------------------

    def start(self) -> str:
        return SHADOW

    def ask(self, path: Path) -> Answer:
        data = path.read_bytes()
        self.asked.append(data)
        if data in (b"RuntimeError", b"not_a_frontal_chest"):
            return Answer(None, None, data.decode())
        return Answer(float(data), float(data) >= 0.5, "")

    def end(self) -> None:
        """No process runs."""

    def close(self) -> None:
        """No resource is held."""

    # -- images ----------------------------------------------------------------------------------

    def receive(self, uid: str, data: bytes) -> None:
        name = self.spool.write(data)
        self.ledger.receive([Arrival(name, "1.2", uid, "1.2", "XRAY1", "dimse", 1, len(data))])

    def end_image(self, uid: str, data: bytes, probability: float, model: str = MODEL) -> None:
        """Receive and complete an image whose file holds the shadow's answer."""
        self.receive(uid, data)
        (job,) = self.ledger.claim_images("me", 1)
        done = Completion(
            "analysed", uid, model=model, probability=probability, positive=probability >= 0.5
        )
        self.ledger.complete(job, done, {"pacs": ("SC", "SEG")})

    def unanswered(self) -> int:
        found = comparison(self.ledger.inspect)
        return 0 if found is None else found.pairs.unanswered


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path) -> Bench:
    return Bench(ledger, tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """On SQLite only."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield Bench(ledger, tmp_path)
    ledger.close()


def test_answers_are_compared_with_the_models_and_with_reports(bench: Bench) -> None:
    assert comparison(bench.ledger.inspect) is None
    bench.end_image("1.2.1", b"0.9", 0.9)
    bench.end_image("1.2.2", b"0.2", 0.8)
    bench.end_image("1.2.3", b"0.7", 0.1)
    bench.end_image("1.2.4", b"0.1", 0.2)
    bench.end_image("1.2.5", b"not_a_frontal_chest", 0.2)
    bench.end_image("1.2.6", b"RuntimeError", 0.2)
    bench.end_image("1.2.7", b"0.3", 0.3, model=SHADOW)
    while bench.look():
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
    # Neither counts the report on the image that the shadow did not answer.
    assert model.reports == shadow.reports == 3
    assert (model.sensitivity[0], shadow.sensitivity[0]) == (0.5, 1.0)
    assert (model.auc, shadow.auc) == (0.5, 1.0)

    metrics = exposition(
        Config.model_validate({"spool": str(bench.spool.folder)}), bench.ledger.inspect
    )
    counted = re.findall(rb'pleura_shadow_images_total{digest="bbbb",outcome="(.*)"} (.*)', metrics)
    assert dict(counted) == {b"agreed": b"2.0", b"disagreed": b"2.0", b"failed": b"2.0"}

    lines = "\n".join(command.lines(command.look(bench.ledger.inspect, 8)))
    assert "shadow candidate 2.0.0 (bbbb) beside serving 1.0.0 (aaaa)" in lines
    assert "shadow: area under the ROC curve: 1.000" in lines


def test_a_shadows_result_is_never_delivered_and_its_failure_blames_no_image(bench: Bench) -> None:
    bench.end_image("1.2.1", b"RuntimeError", 0.9)
    bench.end_image("1.2.2", b"0.1", 0.9)
    before = bench.ledger.inspect.counts(), bench.ledger.inspect.history("1.2.1")
    files = sorted(path.name for path in bench.spool.folder.rglob("*"))
    while bench.look():
        pass
    assert len(bench.asked) == 2
    assert (bench.ledger.inspect.counts(), bench.ledger.inspect.history("1.2.1")) == before
    assert sorted(path.name for path in bench.spool.folder.rglob("*")) == files
    assert bench.ledger.claim_deliveries("pacs", "courier", 9) == []


def test_the_shadow_is_idle_while_an_image_waits_or_is_in_work(bench: Bench) -> None:
    bench.end_image("1.2.1", b"0.9", 0.9)
    bench.receive("1.2.2", b"0.9")
    assert not bench.look()
    (job,) = bench.ledger.claim_images("me", 1)
    assert not bench.look()
    bench.ledger.complete(job, Completion("not_analysed", "d", reason="view"), {})
    assert bench.look()
    assert not bench.look()


def _process(script: str, limits: ShadowLimits = LIMITS) -> Callable[[], Process]:
    """A networks' process simulated by a script."""
    line = (
        f"import json, os, signal, sys, time\nprint(json.dumps({{'name': {SHADOW!r}}}), flush=True)"
    )
    return lambda: Process([sys.executable, "-S", "-c", f"{line}\n{script}"], limits)


@pytest.mark.parametrize(
    ("script", "image_s", "why"),
    [
        ("sys.stdin.readline(); time.sleep(600)", 0.2, "no answer in 0.2 s"),
        ("sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)", 600, "with status -9"),
    ],
)
def test_a_shadow_that_hangs_or_is_killed_loses_only_one_comparison(
    small: Bench, script: str, image_s: float, why: str
) -> None:
    small.end_image("1.2.1", b"0.9", 0.9)
    small.end_image("1.2.2", b"0.9", 0.9)
    networks = _process(script, replace(LIMITS, image_s=image_s))()
    with pytest.raises(EndedError, match=why):
        small.worker.turn(networks, networks.start())
    networks.close()

    while small.look():
        pass
    assert small.asked == [b"0.9"]
    assert small.unanswered() == 1


def test_a_late_answer_is_never_used_for_the_next_image(small: Bench) -> None:
    script = """
def answer(path, probability):
    said = {'path': path, 'probability': probability, 'positive': True, 'why': ''}
    print(json.dumps(said), flush=True)
first = json.loads(sys.stdin.readline())
second = json.loads(sys.stdin.readline())
answer(first, 0.9)
answer(second, 0.8)
"""

    networks = _process(script, replace(LIMITS, image_s=0.2))()
    networks.start()
    first, second = Path("first"), Path("second")

    with pytest.raises(EndedError, match="no answer"):
        networks.ask(first)
    with pytest.raises(EndedError, match="another image"):
        networks.ask(second)
    networks.close()


def test_hanging_networks_are_ended_even_while_the_ledger_is_away(
    small: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(path: Path) -> Answer:
        raise EndedError("no answer in 300 s")

    def away(*_: object) -> None:
        raise OSError("the ledger is away")

    small.end_image("1.2.1", b"0.9", 0.9)
    monkeypatch.setattr(small, "ask", hang)
    monkeypatch.setattr(small.ledger.shadow, "answer", away)
    with pytest.raises(EndedError, match="no answer in 300 s"):
        small.look()


def test_the_role_restarts_its_networks_and_stops_while_they_hang(small: Bench) -> None:
    for number in range(3):
        small.end_image(f"1.2.{number}", b"0.9", 0.9)

    patient = replace(LIMITS, image_s=600.0)
    scripts = iter(["sys.exit(3)", "sys.stdin.readline(); sys.exit(3)"])
    worker = ShadowWorker(
        lambda: _process(next(scripts, "sys.stdin.readline(); time.sleep(600)"), patient)(),
        small.ledger,
        small.spool,
        patient,
    )

    stop = threading.Event()
    names = []
    role = threading.Thread(target=worker.run, args=(stop, names.append))
    role.start()

    wait_until("the third process is asked", lambda: len(names) == 3 and _begun(small) == 3)
    stop.set()
    role.join(60)
    assert not role.is_alive()
    assert set(names) == {SHADOW}


def _begun(bench: Bench) -> int:
    """The number of images that the shadow has begun."""
    return bench.ledger.inspect.shadow.last(SHADOW)


def test_the_role_waits_for_a_usable_package_with_one_log_line(
    small: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    class Unusable(Bench):
        def start(self) -> str:
            tries.append(1)
            if len(tries) < 4:
                raise UnusableModelError("no package")
            return SHADOW

    networks = Unusable(small.ledger, small.spool.folder.parent)
    stop, ready = threading.Event(), threading.Event()
    worker = ShadowWorker(lambda: networks, small.ledger, small.spool, LIMITS)
    role = threading.Thread(target=worker.run, args=(stop, lambda _: ready.set()))
    role.start()
    assert ready.wait(60)
    stop.set()
    role.join(60)
    assert caplog.text.count("no package") == 1


def test_networks_that_fail_to_start_are_retried_and_a_new_package_resets_the_count(
    small: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    small.end_image("1.2.1", b"0.9", 0.9)
    names = iter([SHADOW, "another 1.0.0 cccc"])
    makes: list[int] = []

    class Mortal(Bench):
        def start(self) -> str:
            return next(names)

        def ask(self, path: Path) -> Answer:
            answer = super().ask(path)
            if len(self.asked) == 2:
                raise EndedError("killed")
            return answer

    networks = Mortal(small.ledger, small.spool.folder.parent)

    def make() -> Mortal:
        makes.append(1)
        if len(makes) == 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return networks

    worker = ShadowWorker(make, small.ledger, small.spool, LIMITS)
    stop = threading.Event()
    role = threading.Thread(target=worker.run, args=(stop, lambda _: None))
    role.start()
    wait_until("the first is asked", lambda: len(networks.asked) == 1)
    small.end_image("1.2.2", b"0.9", 0.9)
    wait_until("both are asked again", lambda: len(networks.asked) == 4)
    stop.set()
    role.join(60)
    assert caplog.text.count("does not start: Resource temporarily unavailable") == 1


def test_a_real_package_answers_line_by_line_and_makes_no_object(tmp_path: Path) -> None:
    folder = models.write(tmp_path / "candidate", models.tiny_networks())
    picture = phantom.write(phantom.draw(3, False, 64), tmp_path / "sent.dcm")
    threads = torch.get_num_threads()
    pipeline = answering.load(str(folder), "cpu", {})
    torch.set_num_threads(threads)

    out = io.StringIO()
    absent = str(tmp_path / "absent")
    answering.serve(pipeline, [json.dumps(str(picture)), json.dumps(absent)], out)
    answered, missing = (json.loads(line) for line in out.getvalue().splitlines())
    assert answered["positive"] == (answered["probability"] >= 0.5)
    assert missing["why"] == "FileNotFoundError"
    assert answering.name_of(pipeline).startswith("tiny 1.0.0 ")
    (outcome,) = pipeline.analyse([picture.read_bytes()], datetime(2000, 1, 1))
    assert outcome.results == ()
    with pytest.raises(UnusableModelError):
        answering.load(absent, "cpu", {})


def test_the_process_command_names_package_device_and_rules() -> None:
    shadowed = Config(shadow=Shadow(model="/srv/candidate"))
    assert shadowed.shadow is not None
    *_, model, device, rules = shadow_command(shadowed, shadowed.shadow)
    assert (model, device) == ("/srv/candidate", "cpu")
    assert Rules(**json.loads(rules)).minimum_age_years == 18


def test_serve_runs_a_configured_shadow_and_does_not_depend_on_it() -> None:
    assert service.roles_of(Config()) == ["receive", "analyse", "deliver"]
    shadowed = Config(shadow=Shadow(model="/srv/candidate"))
    assert service.roles_of(shadowed) == ["receive", "analyse", "deliver", "shadow"]
    assert not service.is_needed("shadow")


# -- promotion -------------------------------------------------------------------------------------


@pytest.fixture
def promotion(tmp_path: Path) -> Callable[..., int]:
    """Run `pleura model promote` with the model `serving` and the shadow `candidate`."""
    networks = models.tiny_networks()
    models.write(tmp_path / "serving", networks, "serving")
    models.write(tmp_path / "candidate", networks, "candidate")
    Ledger(f"sqlite:///{tmp_path}/ledger.db").close()

    def run(*options: str, **changed: Any) -> int:
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

    return run


def test_a_promotion_replaces_the_package_and_can_be_reverted(
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
    recorded = [row.facts["what"] for row in rows if row.event == "command"]
    assert recorded[0].startswith(f"model promote: {tmp_path}/serving is now candidate 1.0.0 ")
    assert recorded[1].startswith(f"model promote --back: {tmp_path}/serving is serving 1.0.0 ")


def test_an_impossible_promotion_changes_nothing(
    promotion: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promotion(model="default") == 2
    error = capsys.readouterr().err
    assert f"model: {tmp_path}/candidate" in error
    assert "then restart the node" in error
    assert promotion(shadow=None) == 2
    assert promotion("--back") == 2

    (tmp_path / "candidate" / "weights.safetensors").write_bytes(b"damaged")
    assert promotion() == 2
    assert package.read_manifest(tmp_path / "serving").id == "serving"
    assert [path.name for path in tmp_path.glob("serving*")] == ["serving"]


# A script that makes a second promotion ("three" replaces "two"), kills it at each of its system
# calls in turn, and then repeats or reverts it. After each turn it prints the packages in both
# places.
_KILLED = """
import contextlib, json, os, sys, tempfile
from pathlib import Path
from daemon.commands.promote import PromotionHooks, promote, put_back
from daemon.exits import CannotStartError

# A kill loses nothing that was written.
os.fsync = lambda _: None

def text(path):
    return (path / "model.yaml").read_text()

def turn(folder, calls):
    model, shadow, told = folder / "model", folder / "shadow", folder / "told"
    hooks = PromotionHooks(text, text, lambda what: told.open("a").write(what))
    for path, name in ((model, "one"), (shadow, "two")):
        path.mkdir()
        (path / "model.yaml").write_text(name)
    promote(str(model), str(shadow), hooks)
    (shadow / "model.yaml").write_text("three")

    child = os.fork()
    if not child:
        left = iter(range(calls))
        sys.addaudithook(lambda *_: next(left, None) is None and os._exit(9))
        promote(str(model), str(shadow), hooks)
        os._exit(0)
    _, status = os.waitpid(child, 0)

    held = text(model)
    if sys.argv[2] == "back":
        with contextlib.suppress(CannotStartError):
            put_back(str(model), hooks)
        print(json.dumps([held, text(model)]))
        return status == 0

    with contextlib.suppress(Exception):
        promote(str(model), str(shadow), hooks)
    found = [held in ("two", "three"), text(model), text(folder / "model.before")]
    print(json.dumps(found + ["now three" in told.read_text()]))
    return status == 0

calls = 0
while not turn(Path(tempfile.mkdtemp(dir=sys.argv[1])), calls):
    calls += 1
"""


def turns_of_killed_promotions(folder: Path, then: str) -> list[str]:
    command = [sys.executable, "-c", _KILLED, str(folder), then]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_promotion_killed_at_any_call_and_repeated_loses_no_package(tmp_path: Path) -> None:
    turns = turns_of_killed_promotions(tmp_path, "again")
    assert len(turns) > 20
    assert set(turns) == {'[true, "three", "two", true]'}


def test_reverting_a_killed_promotion_never_selects_a_package_that_has_not_served(
    tmp_path: Path,
) -> None:
    turns = turns_of_killed_promotions(tmp_path, "back")
    assert len(turns) > 20
    # (model before, model after): killed before the swap; refused; refused although the new package
    # already serves; killed after the swap.
    possible = ("two", "one"), ("two", "two"), ("three", "three"), ("three", "two")
    assert set(turns) <= {json.dumps(each) for each in possible}
    assert json.dumps(("three", "two")) in turns


@pytest.fixture
def plain(tmp_path: Path) -> PromotionHooks:
    """Packages `serving` and `candidate` that consist of one line, their name; told.txt is the
    audit trail.
    """
    for name in ("serving", "candidate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.yaml").write_text(name)

    def text(path: Path) -> str:
        return (path / "model.yaml").read_text()

    def record(what: str) -> None:
        with (tmp_path / "told.txt").open("a") as file:
            file.write(f"{what}\n")

    return PromotionHooks(text, text, record)


def test_a_promotion_that_fails_halfway_keeps_the_model(
    plain: PromotionHooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, candidate = str(tmp_path / "serving"), str(tmp_path / "candidate")
    promote(serving, candidate, plain)
    # Promoting the same shadow again would overwrite the previous package.
    with pytest.raises(CannotStartError, match="already"):
        promote(serving, candidate, plain)
    put_back(serving, plain)

    def no_permission(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", no_permission)
    promote(serving, candidate, plain)
    (tmp_path / "candidate" / "model.yaml").write_text("third")
    with pytest.raises(CannotStartError, match="must be able to write"):
        promote(serving, candidate, plain)
    assert plain.name(tmp_path / "serving") == "candidate"
    assert plain.name(tmp_path / "serving.before") == "serving"
    assert (tmp_path / "told.txt").read_text().endswith("serving stays as it was\n")


def test_a_promotion_that_cannot_be_recorded_keeps_the_previous_package(
    plain: PromotionHooks, tmp_path: Path
) -> None:
    def no_ledger(_: str) -> None:
        raise ConnectionError("the ledger is away")

    serving, candidate = tmp_path / "serving", tmp_path / "candidate"
    promote(str(serving), str(candidate), plain)
    (candidate / "model.yaml").write_text("unreviewed")

    with pytest.raises(CannotStartError, match="the ledger is away"):
        promote(str(serving), str(candidate), replace(plain, record=no_ledger))
    put_back(str(serving), plain)
    assert plain.name(serving) == "serving"


def test_a_promotion_without_atomic_swap_keeps_the_previous_package(
    plain: PromotionHooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on NFS. A person may have put the previous package there by hand.
    serving, candidate, before = (
        tmp_path / name for name in ("serving", "candidate", "serving.before")
    )
    candidate.rename(before)
    candidate.mkdir()
    (candidate / "model.yaml").write_text("third")
    names = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())

    for _ in range(2):
        with pytest.raises(CannotStartError, match="cannot swap two names"):
            promote(str(serving), str(candidate), plain)
        assert (plain.name(serving), plain.name(before)) == ("serving", "candidate")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "told.txt"])


@pytest.mark.parametrize(
    ("model", "shadow", "words"),
    [("current", "candidate", "ln -sfn"), ("serving", "serving.new", "a promotion uses itself")],
)
def test_names_that_a_promotion_would_destroy_are_refused(
    plain: PromotionHooks, tmp_path: Path, model: str, shadow: str, words: str
) -> None:
    (tmp_path / "current").symlink_to("serving")
    (tmp_path / "candidate").replace(tmp_path / shadow)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CannotStartError, match=words):
        promote(str(tmp_path / model), str(tmp_path / shadow), plain)
    assert sorted(tmp_path.iterdir()) == before
