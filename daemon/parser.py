"""The command line of `pleura`: every command, its options, and what they may be."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from daemon import installed

# What add_parser belongs to; argparse gives its class no public name.
_Commands = Any

# Where the settings are, unless -c says otherwise.
_SETTINGS_VARIABLE = "PLEURA_CONFIG"
_SETTINGS_FILE = "/etc/pleura/pleura.yaml"

_LAYOUTS = "siim, silver, lgg, table or phantom (docs/training.md); default: siim"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command (`command`) and its options.

    Ends the process with status 2 where they are wrong, and with 0 after --help.
    """
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pleura",
        description="A DICOM node that finds pneumothorax on chest X-rays. Research use only.",
    )
    parser.add_argument("--version", action="version", version=f"pleura {installed.version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _add_roles(commands)
    _add_status(commands)
    _add_repairs(commands)
    _add_drift(commands)
    _add_report(commands)
    _add_predict(commands)
    _add_send(commands)
    _add_monitoring(commands)
    _add_config(commands)
    _add_model(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_comparisons(commands)
    _add_explore(commands)
    _add_demo(commands)
    return parser


def _add(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    return added


def _add_with_config(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = _add(commands, name, text)
    command.add_argument(
        "-c",
        "--config",
        type=Path,
        default=Path(os.environ.get(_SETTINGS_VARIABLE) or _SETTINGS_FILE),
        metavar="FILE",
        help=f"the YAML settings; default: ${_SETTINGS_VARIABLE}, else {_SETTINGS_FILE}",
    )
    return command


def _add_roles(commands: _Commands) -> None:
    _add_with_config(commands, "serve", "Run the node: every role, supervised.")
    _add_with_config(commands, "receive", "Run only the receive role.")

    analyse = _add_with_config(commands, "analyse", "Run only the analyse role.")
    analyse.add_argument("--device", help="cpu, cuda:0, ...; default: the settings' device")
    _add_with_config(commands, "deliver", "Run only the deliver role.")
    _add_with_config(
        commands, "shadow", "Run only the shadow role: a second model, compared with the first."
    )
    _add_with_config(
        commands,
        "reload",
        "Apply the settings to every running role on this machine, or to none of them.",
    )

    web = _add_with_config(commands, "web", "Run only the operator's page.")
    web.add_argument(
        "action",
        nargs="?",
        choices=("run", "hash"),
        default="run",
        help="hash: ask for a password, and print its hash for `web.users`",
    )


def _add_status(commands: _Commands) -> None:
    status = _add_with_config(
        commands, "status", "Count the images by state and the deliveries by state."
    )

    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument(
        "--failed", action="store_true", help="list every failed image and refused delivery"
    )
    status.add_argument(
        "uid",
        nargs="*",
        metavar="UID",
        help="show the history of these images: SOP Instance UID of an image or a result, Study "
        "Instance UID, or accession number",
    )

    trace = _add_with_config(
        commands,
        "trace",
        "Show how long each step of an image took, from its receipt to each archive.",
    )
    trace.add_argument("--json", action="store_true", help="print JSON")
    trace.add_argument(
        "uid",
        nargs="+",
        metavar="UID",
        help="SOP Instance UID of an image or a result, or a Study Instance UID",
    )


def _add_repairs(commands: _Commands) -> None:
    retry = _add_with_config(commands, "retry", "Retry failed images and refused deliveries.")
    retry.add_argument(
        "--state", choices=("failed", "refused"), help="retry only these; default: both"
    )
    retry.add_argument(
        "uid", nargs="*", metavar="UID", help="SOP Instance UIDs of images or results; default: all"
    )

    retry.add_argument("--now", action="store_true", help="also retry owed deliveries at once")
    retry.add_argument(
        "--to",
        metavar="NAME",
        help="only deliveries to this destination",
    )
    retry.add_argument(
        "--from",
        dest="old",
        metavar="OLD",
        help="with --to, after a destination was renamed: send there what is addressed to OLD, a "
        "name that is no longer in the settings",
    )

    resend = _add_with_config(
        commands, "resend", "Send again the objects that a destination stored and then lost."
    )
    resend.add_argument("--to", required=True, metavar="NAME", help="the destination")
    resend.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="only objects stored from this time on, ISO 8601",
    )
    resend.add_argument(
        "uid", nargs="*", metavar="UID", help="only these studies, images or results"
    )

    _add_with_config(
        commands, "verify", "Check that every file the ledger refers to is in the spool, complete."
    )
    backup = _add_with_config(
        commands, "backup", "Copy a node's SQLite ledger and spool files; the node may be running."
    )
    backup.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="the backup folder; a backup that is there is updated",
    )
    _add_with_config(
        commands, "doctor", "Check that everything the settings name exists and answers."
    )


def _add_drift(commands: _Commands) -> None:
    drift = _add_with_config(
        commands,
        "drift",
        "Compare recent weeks with a baseline, and answers with radiologists' reports.",
    )
    drift.add_argument("--json", action="store_true", help="print JSON")
    drift.add_argument(
        "--weeks", type=int, default=8, metavar="N", help="how many weeks; default: 8"
    )
    actions = drift.add_subparsers(dest="action", metavar="ACTION")

    baseline = _add(actions, "baseline", "Set the baseline to the weeks of these days.")
    baseline.add_argument(
        "--from", dest="first", type=_day, required=True, metavar="DATE", help="the first day"
    )
    baseline.add_argument(
        "--to", dest="last", type=_day, required=True, metavar="DATE", help="the last day"
    )
    reports = _add(
        actions, "reports", "Import radiologists' reports from a CSV file or HL7 messages."
    )
    reports.add_argument(
        "file",
        type=Path,
        metavar="FILE.csv|FOLDER",
        help="a CSV file of two columns (SOP Instance UID or Accession Number; yes or no), or a "
        "folder of *.hl7 files, one ORU^R01 in each",
    )
    reports.add_argument(
        "--move-to",
        type=Path,
        metavar="FOLDER",
        help="move imported files into this folder, and files that cannot be used into its "
        "subfolder `unusable`",
    )


def _add_report(commands: _Commands) -> None:
    report = _add_with_config(
        commands, "report", "Write an HTML report: volumes, times, positives, drift and outages."
    )
    report.add_argument("--since", type=_day, required=True, metavar="DATE", help="the first day")
    report.add_argument("--until", type=_day, metavar="DATE", help="the last day; default: today")
    report.add_argument(
        "--out",
        type=Path,
        default=Path("pleura-report.html"),
        metavar="FILE.html",
        help="default: ./pleura-report.html",
    )


def _add_predict(commands: _Commands) -> None:
    predict = _add(
        commands,
        "predict",
        "Analyse DICOM, PNG, JPEG and TIFF files without a node: one JSON line each.",
    )
    predict.add_argument(
        "file",
        nargs="+",
        type=Path,
        metavar="FILE|DIR",
        help="images, or folders with images at any depth",
    )
    predict.add_argument("--model", default="default", help="a model package, as folder or zip")
    predict.add_argument("--device", default="auto", help="cpu, cuda:0, ...; default: auto")

    predict.add_argument("--out", type=Path, metavar="DIR", help="write the result objects here")
    predict.add_argument(
        "--results",
        default="SEG,SC,SR,PR",
        metavar="KINDS",
        help="the kinds of result to make; default: SEG,SC,SR,PR",
    )
    predict.add_argument("--at", type=_time, metavar="TIME", help="the results' time, ISO 8601")

    predict.add_argument(
        "--masks", type=Path, metavar="DIR", help="write each analysed image's mask here, as PNG"
    )
    predict.add_argument(
        "--submission",
        type=Path,
        metavar="FILE.csv",
        help="write every mask as run lengths in SIIM-ACR's format: ImageId,EncodedPixels",
    )
    predict.add_argument(
        "--any-image",
        action="store_true",
        help="also analyse images that a node excludes by their header, such as children, lateral "
        "views, or no study",
    )


def _add_send(commands: _Commands) -> None:
    send = _add(commands, "send", "Send files to a node by C-STORE; without files, C-ECHO.")
    send.add_argument("file", nargs="*", type=Path, metavar="FILE", help="DICOM files to send")
    send.add_argument(
        "--to", required=True, type=_host_port, metavar="HOST:PORT", help="the node's address"
    )
    send.add_argument("--called", required=True, metavar="AET", help="the node's AE title")
    send.add_argument(
        "--calling", default="PLEURA", metavar="AET", help="your AE title; default: PLEURA"
    )


def _add_monitoring(commands: _Commands) -> None:
    alerts = _add_with_config(commands, "alerts", "List current troubles, or send a trial message.")
    alerts.add_argument(
        "action",
        choices=("list", "test"),
        help="list: show current troubles; test: send a trial message over each route",
    )
    _add_with_config(commands, "metrics", "Print the metrics in Prometheus's text format.")


def _add_config(commands: _Commands) -> None:
    config = _add_with_config(
        commands, "config", "Check, show, compare or create the settings file."
    )

    config.add_argument(
        "action",
        choices=("check", "show", "init", "schema", "diff"),
        help="check: report every error; show: print the effective settings; init: write a "
        "commented file with every key at its default; schema: print the JSON Schema for editors; "
        "diff: show what differs",
    )
    config.add_argument(
        "file",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="diff: two files, or one file to compare with the running settings; default: the file "
        "of -c",
    )


def _add_model(commands: _Commands) -> None:
    model = _add(commands, "model", "Check, show, promote or import a model package.")
    actions = model.add_subparsers(dest="action", metavar="ACTION", required=True)

    check = _add(actions, "check", "Load a package, run every check, and describe it.")
    show = _add(actions, "show", "Print a package's manifest as JSON.")
    for action in (check, show):
        action.add_argument(
            "model",
            nargs="?",
            default="default",
            metavar="PACKAGE",
            help="folder, zip, or 'default'",
        )

    promote = _add_with_config(actions, "promote", "Replace the model's package with the shadow's.")
    promote.add_argument(
        "--back", action="store_true", help="put back the package that was there before"
    )

    _add_import(_add(actions, "import", "Make a package from another project's checkpoint."))


def _add_import(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="the checkpoint file: its tensors are read, and no code in it is run",
    )
    action.add_argument(
        "--kind",
        choices=("chexnet", "monai", "onnx", "state-dict", "timm", "torchxrayvision"),
        required=True,
        help="the kind of checkpoint (docs/models.md)",
    )
    action.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the package's folder, empty or new"
    )
    action.add_argument(
        "--threshold",
        type=float,
        required=True,
        help="the lowest probability that counts as positive",
    )
    action.add_argument(
        "--operating-point", required=True, metavar="TEXT", help="how the threshold was chosen"
    )
    action.add_argument(
        "--segmenter",
        default="default",
        metavar="PACKAGE",
        help="take the segmenter from this package; default: the default model",
    )

    _add_network(action)

    # Suppressed defaults: only the given options override the importer's own choices.
    action.add_argument(
        "--side",
        type=int,
        default=argparse.SUPPRESS,
        help="the side of the square input, in pixels",
    )
    for name in ("id", "version", "licence"):
        action.add_argument(f"--{name}", default=argparse.SUPPRESS, help=f"the package's {name}")


def _add_network(action: argparse.ArgumentParser) -> None:
    """Add the options that describe a foreign network and its input."""
    action.add_argument(
        "--role",
        choices=("classifier", "segmenter"),
        default="classifier",
        help="onnx, state-dict: what the network does; default: classifier",
    )
    action.add_argument(
        "--architecture",
        metavar="NAME",
        help="state-dict: a name in docs/models.md; timm: the encoder, such as resnet34",
    )
    action.add_argument(
        "--arguments", default="{}", metavar="YAML", help="state-dict: the architecture's arguments"
    )
    action.add_argument(
        "--normalisation",
        choices=("unit", "image-standard"),
        default="unit",
        help="state-dict, monai: how the image is normalised; default: unit",
    )
    action.add_argument(
        "--axes",
        choices=("xy", "yx"),
        default="xy",
        help="monai: the first axis of the training images; xy: columns, as LoadImage gives; yx: "
        "rows; default: xy",
    )

    action.add_argument(
        "--range",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("BLACK", "WHITE"),
        help="onnx: the input values for black and white; default: 0 1",
    )
    action.add_argument(
        "--imagenet", action="store_true", help="onnx: standardise by ImageNet's mean and deviation"
    )
    action.add_argument(
        "--output",
        type=int,
        default=0,
        metavar="INDEX",
        help="onnx, timm, monai: the index of the output's class, from 0; default: 0",
    )
    action.add_argument(
        "--gives",
        choices=("logits", "probabilities", "softmax-logits"),
        default="logits",
        help="onnx, timm, monai: what the output values are; default: logits",
    )


def _add_train(commands: _Commands) -> None:
    train = _add(
        commands, "train", "Train a recipe; docs/training.md says how the data is laid out."
    )

    train.add_argument(
        "--recipe", required=True, metavar="NAME|FILE", help="a shipped recipe, or a YAML file"
    )
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled images")
    train.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the run's folder; a run that is there is resumed",
    )

    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the recipe, such as networks.0.side=128",
    )
    train.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="N=FILE",
        help="start network N from these weights; N=random if the recipe names published weights "
        "that are not available",
    )

    train.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="a folder for decoded images, which runs may share; default: inside OUT",
    )
    trials = train.add_mutually_exclusive_group()
    trials.add_argument(
        "--show-batches",
        dest="instead",
        action="store_const",
        const="show-batches",
        help="train nothing; write each network's first batches, augmented, to OUT/batches",
    )
    trials.add_argument(
        "--find-learning-rate",
        dest="instead",
        action="store_const",
        const="find-learning-rate",
        help="train nothing; raise the learning rate until the loss explodes, and suggest a rate",
    )
    train.add_argument(
        "--fold",
        type=int,
        metavar="K",
        help="k-fold: validate on fold K, report on the next fold",
    )


def _add_evaluate(commands: _Commands) -> None:
    evaluate = _add(
        commands, "evaluate", "Measure a model package on labelled images; ignores admission."
    )
    evaluate.add_argument(
        "--model", default="default", metavar="PACKAGE", help="default: the default model"
    )
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled images")

    evaluate.add_argument(
        "--layout", default="siim", help=f"{_LAYOUTS}; images: a folder without labels"
    )
    evaluate.add_argument(
        "--split", type=Path, metavar="FILE", help="a run's split.csv: print figures for each part"
    )
    evaluate.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write curves, tables and cases on one page",
    )
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")


def _add_comparisons(commands: _Commands) -> None:
    compare = _add(
        commands,
        "compare",
        "Compare finished training runs: figures, differences, speed, size.",
    )
    compare.add_argument("run", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    compare.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the figures (also .svg and .pdf)"
    )
    compare.add_argument("--json", action="store_true", help="print JSON")

    ensemble = _add(
        commands,
        "ensemble",
        "Join finished training runs, such as a recipe's folds, into one package.",
    )
    ensemble.add_argument("run", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    ensemble.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the package's folder, empty or new"
    )


def _add_explore(commands: _Commands) -> None:
    explore = _add(commands, "explore", "Describe a data set on one HTML page.")
    explore.add_argument("--data", type=Path, required=True, metavar="DIR", help="the images")
    explore.add_argument("--layout", default="siim", help=_LAYOUTS)
    explore.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")


def _add_demo(commands: _Commands) -> None:
    demo = _add(
        commands, "demo", "Try it: run a node on loopback, send it samples, and show the results."
    )
    demo.add_argument(
        "file", nargs="*", type=Path, metavar="FILE", help="X-rays; default: two synthetic ones"
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="the folder for results; default: ./demo",
    )


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} found, a day such as 2026-11-30 wanted"
        ) from None

    _require_year(day.year)
    return day


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} found, a time such as 2026-11-30T18:00 or 2026-11-30 wanted"
        ) from None

    _require_year(moment.year)
    return moment if moment.tzinfo else moment.astimezone()


def _require_year(year: int) -> None:
    """Raise outside the years that every time zone's clock can show."""
    if not 1970 <= year <= 9000:
        raise argparse.ArgumentTypeError(f"year {year} found, 1970 to 9000 wanted")


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    is_port = port.isdigit() and 0 < int(port) < 65536
    if not colon or not host or not is_port:
        raise argparse.ArgumentTypeError(f"{text!r} found, HOST:PORT wanted")

    return host.strip("[]"), int(port)
