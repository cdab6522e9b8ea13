"""`pleura`: the commands, and the one place where the parts are put together.

Each command imports what it needs inside itself: the receiving side stays without torch, and `pleura status` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from daemon import installed
from daemon.parser import parse

EXIT_FAILED = 1  # something was wrong with the work
EXIT_CANNOT_START = (
    2  # something is wrong with the call or the settings: trying again changes nothing
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong call or settings."""
    os.umask(0o077)  # what the node writes is a patient's (design, "Privacy")
    options = parse(arguments)
    if stranger := installed.stranger():
        print(f"pleura: {stranger}", file=sys.stderr)
        raise SystemExit(EXIT_CANNOT_START)
    from daemon import log
    from daemon.config import ConfigError
    from daemon.service import CannotStartError

    log.start()
    try:
        return _COMMANDS[options.command](options)
    except (ConfigError, CannotStartError) as error:
        print(error, file=sys.stderr)
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        return 130


def _serve(options: argparse.Namespace) -> int:
    from daemon import config, supervisor

    return supervisor.serve(config.load(options.config), options.config)


def _role(options: argparse.Namespace) -> int:
    from daemon import config, service

    settings = config.load(options.config)
    device = getattr(options, "device", None)
    if device:
        settings = config.with_device(settings, device)
    return service.run_role(options.command, settings)


def _status(options: argparse.Namespace) -> int:
    ledger = _ledger(options)
    if options.uid:
        histories = {uid: ledger.history(uid) for uid in options.uid}
        print(json.dumps(histories, indent=None if options.json else 2))
        return 0 if all(histories.values()) else EXIT_FAILED
    counts = ledger.counts()
    if options.json:
        print(json.dumps(counts))
        return 0
    for subject, states in counts.items():
        print(f"{subject}: " + ", ".join(f"{number} {state}" for state, number in states.items()))
    for subject, rows in ledger.troubles().items():
        for row in rows:
            name = "image" if subject == "instances" else "delivery"
            print(f"  {name}", *(value for value in row.values() if value not in ("", None)))
    return 0


def _retry(options: argparse.Namespace) -> int:
    count = _ledger(options).rearm(
        [options.state] if options.state else ["failed", "refused"], options.uid
    )
    print(f"{count} re-armed")
    return 0 if count or not options.uid else EXIT_FAILED


def _verify(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands.verify import verify
    from daemon.service import CannotStartError
    from daemon.spool import Spool, SpoolError

    ledger, folder = _ledger(options), config.load(options.config).spool
    if not folder.is_dir():
        raise CannotStartError(
            f"spool {folder}: there is no such folder; the node has not run with these settings yet"
        )
    try:
        spool = Spool(folder)
        spool.claim(ledger.spool_identity)
        report = verify(ledger, spool)
    except (OSError, SpoolError) as error:
        raise CannotStartError(f"spool: {error}") from error
    for fault in report.faults:
        print(fault)
    print(
        f"{report.files} files counted on, {len(report.faults)} faults; "
        f"{report.unowned} files belong to nobody (they are swept when they are an hour old)"
    )
    return 0 if report.clean else EXIT_FAILED


def _doctor(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands import doctor
    from inference import package
    from inference.results import ENCODERS
    from inference.results.gate.common import SOP_CLASSES

    settings, bad = config.load(options.config), 0
    kinds = {
        kind: (str(SOP_CLASSES[kind]), str(encoder.transfer_syntax_uid))
        for kind, encoder in ENCODERS.items()
    }

    def model() -> str:
        from inference.engine import choose_device

        try:
            identity = package.load(package.folder_of(settings.model)).identity
            return f"{identity.id} {identity.version} on {choose_device(settings.device)}"
        except (package.PackageError, ValueError) as error:
            raise doctor.Trouble(str(error)) from error

    for finding in doctor.examine(settings, model, kinds):
        print(finding, flush=True)
        bad += bool(finding.trouble)
    return EXIT_FAILED if bad else 0


def _ledger(options: argparse.Namespace) -> Any:
    from daemon import config
    from daemon.ledger import Ledger, LedgerError
    from daemon.service import CannotStartError

    url = config.load(options.config).ledger
    try:
        return Ledger.existing(url)
    except LedgerError as error:
        raise CannotStartError(str(error)) from error


def _predict(options: argparse.Namespace) -> int:
    from daemon.service import CannotStartError
    from inference.engine import Engine, choose_device
    from inference.package import PackageError, folder_of, load
    from inference.pipeline import AnalysisSettings, Pipeline

    try:
        pipeline = Pipeline(
            Engine(load(folder_of(options.model)), choose_device(options.device)),
            AnalysisSettings(),
        )
    except (PackageError, ValueError) as error:
        raise CannotStartError(f"model, device: {error}") from error
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    result_time, status = options.at or _default_time(), 0
    for path in options.file:
        try:
            data = path.read_bytes()
        except OSError as error:
            print(f"{path}: cannot be read ({error.strerror})", file=sys.stderr)
            status = EXIT_FAILED
            continue
        try:
            (outcome,) = pipeline.analyse([data], result_time)
        except Exception as error:  # the loop's one catch-all: the other files have their answers
            print(f"{path}: the analysis broke ({type(error).__name__})", file=sys.stderr)
            outcome = pipeline.fail(data, "analysis_error", result_time)
            status = EXIT_FAILED
        print(
            json.dumps(
                {"file": str(path)} | outcome.summary() | {"model": pipeline.engine.identity.id}
            ),
            flush=True,
        )
        for result in outcome.results if options.out else ():
            (options.out / f"{result.sop_instance_uid}.dcm").write_bytes(result.data)
    return status


def _send(options: argparse.Namespace) -> int:
    from daemon.commands.send import send

    worst = 0
    host, port = options.to
    for answer in send(options.file, (host, port), options.called, options.calling):
        print(answer)
        worst = max(worst, 0 if answer.ok else EXIT_FAILED)
    return worst


def _config(options: argparse.Namespace) -> int:
    from daemon import config

    settings = config.load(options.config)
    print(config.show(settings) if options.action == "show" else f"{options.config}: ok")
    return 0


def _model(options: argparse.Namespace) -> int:
    from daemon.service import CannotStartError
    from inference import importing, package

    try:
        if options.action == "import":
            chosen = {
                name: value for name, value in vars(options).items() if name in importing.CHOICES
            }
            segmenter = package.folder_of(options.segmenter)
            importing.import_chexnet(
                options.checkpoint, segmenter, options.out, importing.Choices(**chosen)
            )
        path = options.out if options.action == "import" else package.folder_of(options.model)
        if options.action == "show":
            print(package.as_json(package.read_manifest(path)))
        else:
            loaded = package.load(path)
            print(f"{path}: ok, {loaded.identity.digest}", loaded.describe(), sep="\n")
    except package.PackageError as error:
        raise CannotStartError(str(error)) from error
    return 0


def _train(options: argparse.Namespace) -> int:
    from daemon.service import CannotStartError
    from training import commands
    from training.recipe import Recipe

    try:
        path = commands.find_recipe(options.recipe, installed.shipped_file("training", "recipes"))
        wanted = commands.read_recipe(path, options.set, options.fold)
        starts = commands.read_starts(options.start)
        if not isinstance(wanted, Recipe) and (starts or options.cache):
            raise ValueError(
                f"{path}: trains no network; --start and --cache are for recipes that do"
            )
    except (commands.RecipeError, ValueError) as error:
        raise CannotStartError(str(error)) from error
    command = ["pleura", *sys.argv[1:]]

    def say() -> str:
        if isinstance(wanted, Recipe):
            figures = commands.train_package(
                wanted, options.data, options.out, command, starts, options.cache
            )
        else:
            figures = commands.train_outcome(wanted, options.data, options.out)
        return json.dumps(figures, indent=2) if figures else ""

    return _said(say)


def _evaluate(options: argparse.Namespace) -> int:
    from inference.package import folder_of
    from training import commands
    from training.measures.evaluate import table

    def say() -> str:
        recipes = installed.shipped_file("training", "recipes")
        model = folder_of(options.model)
        figures, published = commands.measure(
            model, options.data, options.layout, options.split, options.report, recipes
        )
        return json.dumps(figures, indent=2) if options.json else table(figures, published)

    return _said(say)


def _explore(options: argparse.Namespace) -> int:
    from training import commands

    def say() -> str:
        commands.explore_data(options.data, options.layout, options.out)
        return str(options.out)

    return _said(say)


def _said(say: Callable[[], str]) -> int:
    """Print what a training command has to say, or why it failed."""
    from daemon.service import CannotStartError
    from inference.package import PackageError
    from training import commands

    try:
        print(say())
    except PackageError as error:
        raise CannotStartError(str(error)) from error
    except commands.FAILURES as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    return 0


def _demo(options: argparse.Namespace) -> int:
    from daemon.commands import demo
    from training import phantom

    files = options.file or phantom.demo_samples(options.out / "samples")
    return demo.run(files, options.out)


def _default_time() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")  # reproducible-builds.org
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now().astimezone()


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve, "receive": _role, "analyse": _role, "deliver": _role,
    "status": _status, "retry": _retry, "verify": _verify, "doctor": _doctor, "config": _config,
    "predict": _predict, "send": _send, "demo": _demo,
    "model": _model, "train": _train, "evaluate": _evaluate, "explore": _explore,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
