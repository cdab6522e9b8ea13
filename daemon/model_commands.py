"""The commands about models: model, train, evaluate, compare, ensemble, explore.

They need no node. Each imports what it needs inside itself, so that the node's commands stay quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from daemon import installed
from daemon.exits import EXIT_FAILED, CannotStartError


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

    loaded = package.load(package.folder_of(options.model))
    print(f"{options.model}: ok, {loaded.identity.digest}", loaded.describe(), sep="\n")


def _model_show(options: argparse.Namespace) -> None:
    from inference import package

    print(package.as_json(package.read_manifest(package.folder_of(options.model))))


def _model_import(options: argparse.Namespace) -> None:
    from inference import importing, package

    given = {name: value for name, value in vars(options).items() if name in importing.CHOICES}
    choices = importing.Choices(**given)
    segmenter = package.folder_of(options.segmenter)

    importing.import_chexnet(options.checkpoint, segmenter, options.out, choices)
    print(_checked_in_words(options.out))


def _checked_in_words(path: Path) -> str:
    """A package after every check, in words."""
    from inference import package

    loaded = package.load(path, any_task=True)
    return f"{path}: ok, {loaded.identity.digest}\n{loaded.describe()}"


def train(options: argparse.Namespace) -> int:
    """Train a recipe; prints its figures, its report's path and the line that serves it."""
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
        if not isinstance(recipe, Recipe):
            return json.dumps(commands.train_outcome(recipe, options.data, options.out), indent=2)

        found = commands.train_package(
            recipe, options.data, options.out, command, starts, options.cache
        )
        return str(commands.closing_lines(recipe, found, options.out)) if found else ""

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


def compare(options: argparse.Namespace) -> int:
    """Set finished training runs beside each other; prints a table, or JSON."""
    commands = _training_commands("compare")

    def compared() -> str:
        found = commands.compare_runs(options.run, options.plot)
        return json.dumps(found, indent=2) if options.json else commands.comparison_table(found)

    return _print_outcome(compared)


def ensemble(options: argparse.Namespace) -> int:
    """Join finished training runs to one package, and describe it."""
    commands = _training_commands("ensemble")

    def joined() -> str:
        commands.join_runs(options.run, options.out)
        return _checked_in_words(options.out)

    return _print_outcome(joined)


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
