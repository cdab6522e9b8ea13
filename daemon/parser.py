"""The command line: every command of `pleura` with its options, and what their words may be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from daemon import installed


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command (`command`) and its options; ends the process with 2 where they are wrong, with 0 after --help."""
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pleura",
        description="A DICOM node that finds pneumothorax on chest X-rays. Research use only.",
    )
    parser.add_argument("--version", action="version", version=f"pleura {installed.version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def with_config(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument(
            "-c", "--config", type=Path, required=True, metavar="FILE", help="the YAML settings"
        )
        return sub

    with_config(command("serve", "Run the node: receive, analyse and deliver, supervised."))
    with_config(command("receive", "Run the receive role alone."))
    analyse = with_config(command("analyse", "Run the analyse role alone."))
    analyse.add_argument("--device", help="cpu, cuda:0, ...; default: the settings' device")
    with_config(command("deliver", "Run the deliver role alone."))

    status = with_config(command("status", "What was received, what became of it, what is owed."))
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "uid", nargs="*", metavar="UID", help="what became of these images, by SOP Instance UID"
    )

    retry = with_config(
        command("retry", "Give failed images and refused deliveries another chance.")
    )
    retry.add_argument("--state", choices=("failed", "refused"), help="only these; default: both")
    retry.add_argument(
        "uid", nargs="*", metavar="UID", help="SOP Instance UIDs of images or results; default: all"
    )

    with_config(
        command("verify", "Compare the spool with the ledger: is everything there, and whole?")
    )
    with_config(command("doctor", "Is everything the settings name there, and does it answer?"))

    predict = command("predict", "Analyse files without a node: one JSON line each.")
    predict.add_argument("file", nargs="+", type=Path, metavar="FILE")
    predict.add_argument("--model", default="default", help="a model package: its folder or zip")
    predict.add_argument("--device", default="auto")
    predict.add_argument("--out", type=Path, metavar="DIR", help="write the result objects here")
    predict.add_argument("--at", type=_time, metavar="TIME", help="the results' time, ISO 8601")

    send = command("send", "C-STORE files to a node; without files, C-ECHO.")
    send.add_argument("file", nargs="*", type=Path, metavar="FILE")
    send.add_argument("--to", required=True, type=_host_port, metavar="HOST:PORT")
    send.add_argument("--called", required=True, metavar="AET")
    send.add_argument("--calling", default="PLEURA", metavar="AET")

    config = command("config", "Check or show the settings.")
    config.add_argument("action", choices=("check", "show"))
    with_config(config)

    model = command("model", "Check, show or import a model package.")
    actions = model.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("check", "Load it with every check and say what it is."),
        ("show", "Its manifest as JSON."),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument(
            "model",
            nargs="?",
            default="default",
            metavar="PACKAGE",
            help="folder, zip, or 'default'",
        )
    _import_options(
        actions.add_parser("import", help="Make a package of somebody else's checkpoint.")
    )

    train = command("train", "Train a recipe on data laid out as in docs/training.md.")
    train.add_argument("--recipe", required=True, metavar="NAME|FILE")
    train.add_argument("--data", type=Path, required=True, metavar="DIR")
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the same again resumes"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a knob: networks.0.side=128",
    )
    train.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="N=FILE",
        help="weights network N starts from",
    )
    train.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="decoded images, for several runs (without: in OUT)",
    )
    train.add_argument(
        "--fold", type=int, metavar="K", help="k-fold: validate on this one, report on the next"
    )

    evaluate = command("evaluate", "Measure a model package on labelled images; ignores admission.")
    evaluate.add_argument("--model", default="default", metavar="PACKAGE")
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR")
    evaluate.add_argument(
        "--layout", default="siim", help="siim, silver, lgg, table or phantom (docs/training.md)"
    )
    evaluate.add_argument(
        "--split", type=Path, metavar="FILE", help="split.csv of a run: figures of its parts"
    )
    evaluate.add_argument(
        "--report", type=Path, metavar="FILE.html", help="curves, tables and cases on one page"
    )
    evaluate.add_argument("--json", action="store_true", help="the figures as JSON")

    explore = command("explore", "Describe a data set on one HTML page.")
    explore.add_argument("--data", type=Path, required=True, metavar="DIR")
    explore.add_argument(
        "--layout", default="siim", help="siim, silver, lgg, table or phantom (docs/training.md)"
    )
    explore.add_argument("--out", type=Path, required=True, metavar="FILE.html")

    demo = command("demo", "See it work: a node on loopback, samples in over C-STORE, results out.")
    demo.add_argument(
        "file", nargs="*", type=Path, metavar="FILE", help="X-rays; default: two synthetic ones"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="default: ./demo"
    )
    return parser


def _import_options(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="only its tensors are read, nothing is run",
    )
    action.add_argument("--kind", choices=("chexnet",), required=True)
    action.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the package's folder, empty or new"
    )
    action.add_argument(
        "--threshold",
        type=float,
        required=True,
        help="positive from this probability on: your choice",
    )
    action.add_argument(
        "--operating-point", required=True, metavar="TEXT", help="how the threshold was chosen"
    )
    action.add_argument(
        "--segmenter", default="default", metavar="PACKAGE", help="whose segmenter; default: ours"
    )
    for name in ("side", "id", "version", "licence"):
        action.add_argument(
            f"--{name}", type=int if name == "side" else str, default=argparse.SUPPRESS
        )


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.astimezone()


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} found, HOST:PORT wanted")
    return host.strip("[]"), int(port)
