"""`pleura`: the commands, and the one place where the parts are put together.

Each command imports what it needs inside itself: the receiving side stays without torch, and `pleura status` is quick.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.resources
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

EXIT_FAILED = 1  # something was wrong with the work
EXIT_CANNOT_START = 2  # something is wrong with the call or the settings: trying again changes nothing
_PACKAGES = ("daemon", "inference", "training")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong call or settings."""
    os.umask(0o077)  # what the node writes is a patient's (design, "Privacy")
    options = _parser().parse_args(arguments)
    _refuse_foreign_packages()
    from daemon import log
    from daemon.config import ConfigError
    from daemon.service import CannotStartError

    log.start()
    try:
        return int(options.run(options) or 0)
    except (ConfigError, CannotStartError) as error:
        print(error, file=sys.stderr)
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        return 130


def shipped_file(package: str, name: str) -> Path:
    """A file that ships inside a package of the wheel, or lies in the checkout's config folder."""
    path = Path(str(importlib.resources.files(package))) / name
    return path if path.exists() else Path(__file__).resolve().parent.parent / "config" / name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pleura", description="A DICOM node that finds pneumothorax on chest X-rays. Research use only."
    )
    parser.add_argument("--version", action="version", version=f"pleura {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], Any], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def with_config(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="the YAML settings")
        return sub

    with_config(command("serve", _serve, "Run the node: receive, analyse and deliver, supervised."))
    with_config(command("receive", _role, "Run the receive role alone.")).set_defaults(role="receive")
    analyse = with_config(command("analyse", _role, "Run the analyse role alone."))
    analyse.set_defaults(role="analyse")
    analyse.add_argument("--device", help="cpu, cuda:0, ...; default: the settings' device")
    with_config(command("deliver", _role, "Run the deliver role alone.")).set_defaults(role="deliver")

    status = with_config(command("status", _status, "What was received, what became of it, what is owed."))
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument("uid", nargs="*", metavar="UID", help="what became of these images, by SOP Instance UID")

    retry = with_config(command("retry", _retry, "Give failed images and refused deliveries another chance."))
    retry.add_argument("--state", choices=("failed", "refused"), help="only these; default: both")
    retry.add_argument("uid", nargs="*", metavar="UID", help="SOP Instance UIDs of images or results; default: all")

    with_config(command("verify", _verify, "Compare the spool with the ledger: is everything there, and whole?"))

    with_config(command("doctor", _doctor, "Is everything the settings name there, and does it answer?"))

    predict = command("predict", _predict, "Analyse files without a node: one JSON line each.")
    predict.add_argument("file", nargs="+", type=Path, metavar="FILE")
    predict.add_argument("--model", default="default", help="a model package: its folder or zip")
    predict.add_argument("--device", default="auto")
    predict.add_argument("--out", type=Path, metavar="DIR", help="write the result objects here")
    predict.add_argument("--at", type=_time, metavar="TIME", help="the results' time, ISO 8601")

    send = command("send", _send, "C-STORE files to a node; without files, C-ECHO.")
    send.add_argument("file", nargs="*", type=Path, metavar="FILE")
    send.add_argument("--to", required=True, type=_host_port, metavar="HOST:PORT")
    send.add_argument("--called", required=True, metavar="AET")
    send.add_argument("--calling", default="PLEURA", metavar="AET")

    config = command("config", _config, "Check or show the settings.")
    config.add_argument("action", choices=("check", "show"))
    with_config(config)

    model = command("model", _model, "Check, show or import a model package.")
    actions = model.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (("check", "Load it with every check and say what it is."), ("show", "Its manifest as JSON.")):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("model", nargs="?", default="default", metavar="PACKAGE", help="folder, zip, or 'default'")
    _import_options(actions.add_parser("import", help="Make a package of somebody else's checkpoint."))

    train = command("train", _train, "Train a recipe on data laid out as in docs/training.md.")
    train.add_argument("--recipe", required=True, metavar="NAME|FILE")
    train.add_argument("--data", type=Path, required=True, metavar="DIR")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="the same again resumes")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a knob: networks.0.side=128")
    train.add_argument("--start", action="append", default=[], metavar="N=FILE", help="weights network N starts from")
    train.add_argument("--cache", type=Path, metavar="DIR", help="decoded images, for several runs (without: in OUT)")
    train.add_argument("--fold", type=int, metavar="K", help="k-fold: validate on this one, report on the next")

    evaluate = command("evaluate", _evaluate, "Measure a model package on labelled images; ignores admission.")
    evaluate.add_argument("--model", default="default", metavar="PACKAGE")
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR")
    evaluate.add_argument("--layout", default="siim", help="siim, silver, lgg, table or phantom (docs/training.md)")
    evaluate.add_argument("--split", type=Path, metavar="FILE", help="split.csv of a run: figures of its parts")
    evaluate.add_argument("--report", type=Path, metavar="FILE.html", help="curves, tables and cases on one page")
    evaluate.add_argument("--json", action="store_true", help="the figures as JSON")

    explore = command("explore", _explore, "Describe a data set on one HTML page.")
    explore.add_argument("--data", type=Path, required=True, metavar="DIR")
    explore.add_argument("--layout", default="siim", help="siim, silver, lgg, table or phantom (docs/training.md)")
    explore.add_argument("--out", type=Path, required=True, metavar="FILE.html")

    demo = command("demo", _demo, "See it work: a node on loopback, samples in over C-STORE, results out.")
    demo.add_argument("file", nargs="*", type=Path, metavar="FILE", help="X-rays; default: two synthetic ones")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: ./demo")
    return parser


def _serve(options: argparse.Namespace) -> int:
    from daemon import config, service

    settings = config.load(options.config)
    return service.serve(settings, options.config)


def _role(options: argparse.Namespace) -> int:
    from daemon import config, service

    settings = config.load(options.config)
    device = getattr(options, "device", None)
    if device:
        settings = config.with_device(settings, device)
    return service.run_role(options.role, settings)


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
    count = _ledger(options).rearm([options.state] if options.state else ["failed", "refused"], options.uid)
    print(f"{count} re-armed")
    return 0 if count or not options.uid else EXIT_FAILED


def _verify(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.service import CannotStartError
    from daemon.spool import Spool, SpoolError
    from daemon.verify import verify

    ledger, folder = _ledger(options), config.load(options.config).spool
    if not folder.is_dir():
        raise CannotStartError(f"spool {folder}: there is no such folder; the node has not run with these settings yet")
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
    from daemon import config, doctor
    from inference import package
    from inference.results.gate import SOP_CLASSES

    settings, bad = config.load(options.config), 0

    def model() -> str:
        from inference.engine import choose_device

        try:
            identity = package.load(package.folder_of(settings.model)).identity
            return f"{identity.id} {identity.version} on {choose_device(settings.device)}"
        except (package.PackageError, ValueError) as error:
            raise doctor.Trouble(str(error)) from error

    for finding in doctor.examine(settings, model, SOP_CLASSES):
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
    from inference.pipeline import Pipeline, Settings

    try:
        pipeline = Pipeline(Engine(load(folder_of(options.model)), choose_device(options.device)), Settings())
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
        print(json.dumps({"file": str(path)} | outcome.summary() | {"model": pipeline.engine.identity.id}), flush=True)
        for result in outcome.results if options.out else ():
            (options.out / f"{result.sop_instance_uid}.dcm").write_bytes(result.data)
    return status


def _send(options: argparse.Namespace) -> int:
    from daemon.scu import send

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


def _import_options(action: argparse.ArgumentParser) -> None:
    action.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="only its tensors are read, nothing is run")
    action.add_argument("--kind", choices=("chexnet",), required=True)
    action.add_argument("--out", type=Path, required=True, metavar="DIR", help="the package's folder, empty or new")
    action.add_argument("--threshold", type=float, required=True, help="positive from this probability on: your choice")
    action.add_argument("--operating-point", required=True, metavar="TEXT", help="how the threshold was chosen")
    action.add_argument("--segmenter", default="default", metavar="PACKAGE", help="whose segmenter; default: ours")
    for name in ("side", "id", "version", "licence"):
        action.add_argument(f"--{name}", type=int if name == "side" else str, default=argparse.SUPPRESS)


def _model(options: argparse.Namespace) -> int:
    from daemon.service import CannotStartError
    from inference import importing, package

    try:
        if options.action == "import":
            chosen = {name: value for name, value in vars(options).items() if name in importing.CHOICES}
            segmenter = package.folder_of(options.segmenter)
            importing.import_chexnet(options.checkpoint, segmenter, options.out, importing.Choices(**chosen))
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

    path = Path(options.recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_file("training", f"recipes/{options.recipe}.yaml")
        if not path.is_file():
            names = sorted(one.stem for one in shipped_file("training", "recipes").glob("*.yaml"))
            raise CannotStartError(
                f"--recipe {options.recipe}: no such recipe; a .yaml file wanted, or one of {', '.join(names)}"
            )
    try:
        wanted = commands.read_recipe(path, dict(_pairs("--set", options.set)), options.fold)
        starts: dict[int, Path] = {}
        form = "N=FILE, N a network's number,"
        for number, file in _pairs("--start", options.start, form):
            if not number.isdecimal() or not file:
                raise ValueError(f"--start {number}={file}: {form} wanted")
            starts[int(number)] = Path(file)
        if not isinstance(wanted, Recipe) and (starts or options.cache):
            raise ValueError(f"{path}: trains no network; --start and --cache are for recipes that do")
    except (commands.RecipeError, ValueError) as error:
        raise CannotStartError(str(error)) from error
    command = ["pleura", *sys.argv[1:]]

    def say() -> str:
        if isinstance(wanted, Recipe):
            figures = commands.train_package(wanted, options.data, options.out, command, starts, options.cache)
        else:
            figures = commands.train_outcome(wanted, options.data, options.out)
        return json.dumps(figures, indent=2) if figures else ""

    return _said(say)


def _evaluate(options: argparse.Namespace) -> int:
    from inference.package import folder_of
    from training import commands
    from training.measures.evaluate import table

    def say() -> str:
        recipes = shipped_file("training", "recipes")
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


def _pairs(option: str, given: Sequence[str], form: str = "KEY=VALUE") -> Iterator[tuple[str, str]]:
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} {text}: {form} wanted")
        yield key, value


def _demo(options: argparse.Namespace) -> int:
    from daemon import demo
    from training import phantom

    files = options.file or phantom.demo_samples(options.out / "samples")
    return demo.run(files, options.out)


def _default_time() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")  # reproducible-builds.org
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now().astimezone()


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.astimezone()


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} found, HOST:PORT wanted")
    return host.strip("[]"), int(port)


def _version() -> str:
    try:
        return importlib.metadata.version("pleura")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _refuse_foreign_packages() -> None:
    """Our packages have plain names; where another distribution owns one of them too, imports would be a lottery."""
    # metadata.packages_distributions() looks at every file of every distribution: 0.15 to 0.5 s at each start.
    ours = re.compile(rf"(?m)^({'|'.join(_PACKAGES)})\b(?:/|\.py\b|$)")
    for distribution in importlib.metadata.distributions():
        listed = distribution.read_text("top_level.txt") or distribution.read_text("RECORD") or ""
        found = ours.search(listed)
        if found and distribution.metadata["Name"] != "pleura":
            _exit(
                f"the Python package {found[1]!r} is also installed by {distribution.metadata['Name']}; "
                "give Pleura a virtual environment of its own"
            )


def _exit(message: str) -> NoReturn:
    print(f"pleura: {message}", file=sys.stderr)
    raise SystemExit(EXIT_CANNOT_START)


if __name__ == "__main__":
    sys.exit(main())
