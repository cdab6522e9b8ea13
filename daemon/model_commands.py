"""The commands about models: predict, model, train, evaluate, explore.

They need no node. Each imports what it needs inside itself, so that the node's commands stay quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from daemon import installed
from daemon.exits import EXIT_FAILED, CannotStartError

if TYPE_CHECKING:
    from inference.pipeline import Pipeline


def predict(options: argparse.Namespace) -> int:
    """Analyse files; one JSON line each, and result objects where --out is given."""
    pipeline = _pipeline(options)
    result_time = options.at or _default_time()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)

    status = 0
    for path in options.file:
        if not _predict_file(pipeline, path, result_time, options.out):
            status = EXIT_FAILED
    return status


def _pipeline(options: argparse.Namespace) -> Pipeline:
    from inference.engine import Engine, choose_device
    from inference.package import PackageError, folder_of, load
    from inference.pipeline import AnalysisSettings, Pipeline

    try:
        engine = Engine(load(folder_of(options.model)), choose_device(options.device))
        return Pipeline(engine, AnalysisSettings(kinds=_kinds(options.results)))
    except (PackageError, ValueError) as error:
        raise CannotStartError(f"model, device: {error}") from error


def _kinds(text: str) -> frozenset[str]:
    """The kinds of result that `--results` names, such as "SEG,SC".

    Raises:
        CannotStartError: a name that is no kind.
    """
    from inference.results.kinds import KINDS

    names = [name.strip().upper() for name in text.split(",")]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise CannotStartError(f"--results: found {unknown[0]!r}; allowed: {', '.join(KINDS)}")
    return frozenset(names)


def _predict_file(
    pipeline: Pipeline, path: Path, result_time: datetime, folder: Path | None
) -> bool:
    """Analyse one file; False where it cannot be read or the analysis breaks."""
    try:
        data = path.read_bytes()
    except OSError as error:
        print(f"{path}: cannot be read ({error.strerror})", file=sys.stderr)
        return False

    is_sound = True
    try:
        (outcome,) = pipeline.analyse([data], result_time)
    except Exception as error:
        # The loop's one catch-all: the other files still get their answers.
        print(f"{path}: the analysis broke ({type(error).__name__})", file=sys.stderr)
        outcome = pipeline.fail(data, "analysis_error", result_time)
        is_sound = False

    line = {"file": str(path)} | outcome.summary() | {"model": pipeline.engine.identity.id}
    print(json.dumps(line), flush=True)

    if folder is not None:
        for result in outcome.results:
            (folder / f"{result.sop_instance_uid}.dcm").write_bytes(result.data)
    return is_sound


def _default_time() -> datetime:
    """Now, or SOURCE_DATE_EPOCH (reproducible-builds.org) for results that repeat byte by byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now().astimezone()


def model(options: argparse.Namespace) -> int:
    """Check, show or import a model package."""
    from inference import package

    actions = {"check": _model_check, "show": _model_show, "import": _model_import}
    try:
        actions[options.action](options)
    except package.PackageError as error:
        raise CannotStartError(str(error)) from error
    return 0


def _model_check(options: argparse.Namespace) -> None:
    from inference import package

    _print_checked(package.folder_of(options.model))


def _model_show(options: argparse.Namespace) -> None:
    from inference import package

    print(package.as_json(package.read_manifest(package.folder_of(options.model))))


def _model_import(options: argparse.Namespace) -> None:
    from inference import importing, package

    given = {name: value for name, value in vars(options).items() if name in importing.CHOICES}
    choices = importing.Choices(**given)
    segmenter = package.folder_of(options.segmenter)

    importing.import_chexnet(options.checkpoint, segmenter, options.out, choices)
    _print_checked(options.out)


def _print_checked(path: Path) -> None:
    from inference import package

    loaded = package.load(path)
    print(f"{path}: ok, {loaded.identity.digest}", loaded.describe(), sep="\n")


def train(options: argparse.Namespace) -> int:
    """Train a recipe; prints its figures as JSON."""
    commands = _training_commands("train")
    from training.recipe import Recipe

    try:
        path = commands.find_recipe(options.recipe, installed.shipped_file("training", "recipes"))
        recipe = commands.read_recipe(path, options.set, options.fold)
        starts = commands.read_starts(options.start)
        if not isinstance(recipe, Recipe) and (starts or options.cache):
            raise ValueError(
                f"{path}: trains no network; --start and --cache are for recipes that do"
            )
    except (commands.RecipeError, ValueError) as error:
        raise CannotStartError(str(error)) from error

    command = ["pleura", *sys.argv[1:]]

    def figures() -> str:
        if isinstance(recipe, Recipe):
            found = commands.train_package(
                recipe, options.data, options.out, command, starts, options.cache
            )
        else:
            found = commands.train_outcome(recipe, options.data, options.out)
        return json.dumps(found, indent=2) if found else ""

    return _print_outcome(figures)


def evaluate(options: argparse.Namespace) -> int:
    """Measure a model package on labelled images; prints a table, or JSON."""
    from inference.package import folder_of

    commands = _training_commands("evaluate")
    from training.measures.evaluate import table

    def figures() -> str:
        found, published = commands.measure(
            folder_of(options.model),
            options.data,
            options.layout,
            options.split,
            options.report,
            installed.shipped_file("training", "recipes"),
        )
        return json.dumps(found, indent=2) if options.json else table(found, published)

    return _print_outcome(figures)


def explore(options: argparse.Namespace) -> int:
    """Describe a data set on one HTML page; prints the page's path."""
    commands = _training_commands("explore")

    def page() -> str:
        commands.explore_data(options.data, options.layout, options.out)
        return str(options.out)

    return _print_outcome(page)


def _training_commands(command: str) -> ModuleType:
    """The module `training.commands`.

    Raises:
        CannotStartError: a library of the `train` extra is absent.
    """
    from inference.extras import MissingExtraError, needs_training_libraries

    try:
        with needs_training_libraries(f"pleura {command}"):
            from training import commands
    except MissingExtraError as error:
        raise CannotStartError(str(error)) from error
    return commands


def _print_outcome(command: Callable[[], str]) -> int:
    """Run a training command and print its outcome, or why it failed."""
    from inference.package import PackageError
    from training import commands

    try:
        print(command())
    except PackageError as error:
        raise CannotStartError(str(error)) from error
    except commands.FAILURES as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    return 0
