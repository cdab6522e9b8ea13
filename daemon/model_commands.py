"""The commands about models: model, train, evaluate, compare, ensemble, explore.

They need no node. Each imports what it needs inside itself, so that the node's commands stay quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from daemon import installed, torch_process
from daemon.exits import EXIT_FAILED, CannotStartError

if TYPE_CHECKING:
    from daemon.commands.promote import PromotionHooks
    from daemon.ledger import Ledger
    from inference.foreign import Foreign


def model(options: argparse.Namespace) -> int:
    """Check, show, import or promote a model package."""
    from inference.container import PackageError

    actions = {
        "check": _model_check,
        "show": _model_show,
        "import": _model_import,
        "promote": _model_promote,
    }
    try:
        actions[options.action](options)
    except PackageError as error:
        raise CannotStartError(str(error)) from error
    return 0


def _model_check(options: argparse.Namespace) -> None:
    torch_process.prepare()
    from inference import package

    folder = package.folder_of(options.model)
    loaded = package.load(folder)
    print(f"{folder}: ok, {loaded.identity.digest}", loaded.describe(), sep="\n")


def _model_show(options: argparse.Namespace) -> None:
    from inference.manifest import as_json
    from inference.package_files import folder_of, read_manifest

    print(as_json(read_manifest(folder_of(options.model))))


def _model_promote(options: argparse.Namespace) -> None:
    from daemon import config, opening
    from daemon.commands.promote import promote, put_back

    settings = config.load(options.config)
    # First, so that nothing is done that could not be told to the audit trail.
    ledger = opening.ledger(settings)
    hooks = _hooks(ledger)

    try:
        if options.back:
            done = put_back(settings.model, hooks)
        elif settings.shadow is None:
            raise CannotStartError(
                "shadow: found null; allowed: a shadow, whose package is promoted"
            )
        else:
            done = promote(settings.model, settings.shadow.model, hooks)
    finally:
        ledger.close()

    print(f"{done.what}; the package before it is {done.before}")
    print(f"It serves after: pleura reload -c {options.config}")


def _hooks(ledger: Ledger) -> PromotionHooks:
    """What a promotion asks: of packages, and of the audit trail."""
    from daemon.commands.promote import PromotionHooks
    from daemon.invoker import user

    torch_process.prepare()
    from inference import package

    def check(path: Path) -> str:
        identity = package.load(path).identity
        return f"{identity.id} {identity.version} {identity.digest}"

    def name(path: Path) -> str:
        try:
            found = package.read_manifest(path)
            return f"{found.id} {found.version} {package.digest_of(path)}"
        except package.PackageError:
            return "a package that cannot be used"

    def record(what: str) -> None:
        ledger.record_audit("command", {"by": user(), "what": what})

    return PromotionHooks(check, name, record)


def _model_import(options: argparse.Namespace) -> None:
    from inference import importing, package

    given = {name: value for name, value in vars(options).items() if name in importing.CHOICES}
    choices = importing.Choices(**given)
    segmenter = package.folder_of(options.segmenter)

    if options.kind == "chexnet":
        importing.import_chexnet(options.checkpoint, segmenter, options.out, choices)
    else:
        from inference import foreign

        if "id" not in given:
            choices = replace(choices, id="imported")
        foreign.write(_foreign(options, choices.side), segmenter, options.out, choices)
    print(_checked_in_words(options.out))


def _foreign(options: argparse.Namespace, side: int) -> Foreign:
    """The network of a foreign file, as the options describe it.

    Raises:
        CannotStartError: an option is missing or no YAML mapping.
        PackageError: the file is not what was said.
    """
    from inference import foreign

    path = options.checkpoint
    if options.kind in ("state-dict", "timm") and not options.architecture:
        raise CannotStartError(f"--kind {options.kind}: --architecture NAME wanted")

    if options.kind == "onnx":
        low, high = options.range
        arguments = {"low": low, "high": high, "index": options.output, "gives": options.gives}
        colours = foreign.IMAGENET if options.imagenet else {}
        return foreign.from_onnx(path, options.role, side, **arguments, **colours)
    if options.kind == "torchxrayvision":
        return foreign.from_xrayvision(path, side)
    if options.kind == "state-dict":
        named = (options.architecture, _mapping(options.arguments), options.normalisation)
        return foreign.from_state_dict(path, options.role, side, *named)
    if options.kind == "monai":
        from inference import monai_bundle

        head = monai_bundle.Head(options.output, options.gives, options.axes)
        return monai_bundle.from_bundle(path, side, head, options.normalisation)
    return _from_timm(options, side)


def _from_timm(options: argparse.Namespace, side: int) -> Foreign:
    _training_commands("model import --kind timm")
    from training import timm_checkpoint
    from training.fitting.weights import WeightsError

    how = timm_checkpoint.Head(options.output, options.gives)
    try:
        return timm_checkpoint.classifier(options.checkpoint, options.architecture, side, how)
    except WeightsError as error:
        raise CannotStartError(str(error)) from error


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise CannotStartError(f"--arguments: found {text!r}; a YAML mapping wanted, like {{a: 1}}")
    return found


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
            recipe, options.data, options.out, command, starts, options.cache, options.instead
        )
        return str(commands.closing_lines(recipe, found, options.out)) if found else ""

    return _print_outcome(figures)


def evaluate(options: argparse.Namespace) -> int:
    """Measure a model package on labelled images; prints a table, or JSON."""
    from inference.package import folder_of

    commands = _training_commands("evaluate")
    from training.measures.evaluate import table

    def figures() -> str:
        if options.layout == commands.UNLABELLED:
            counts, text = commands.measure_unlabelled(folder_of(options.model), options.data)
            return json.dumps(counts, indent=2) if options.json else str(text)

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
    """Compare finished training runs; prints a table, or JSON."""
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
    """Describe a data set on one HTML page; prints what its checks found, and the page's path."""
    commands = _training_commands("explore")

    def page() -> str:
        found = commands.explore_data(options.data, options.layout, options.out)
        return f"{found}\n\npage: {options.out}"

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
