"""The work of `pleura train`, `evaluate` and `explore`; the command line calls it and prints."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from inference import package
from inference.container import PackageError
from inference.extras import needs_training_libraries
from training import card, ensemble, loop, progress, recipe
from training import data as labelled
from training.data import explore
from training.data import split as splits
from training.fitting.fit import TrainingError
from training.fitting.run import RunError
from training.fitting.weights import WeightsError
from training.measures import compare, evaluate, report, unlabelled
from training.recipe import Layout, Recipe, RecipeError

if TYPE_CHECKING:
    from training.measures import outcome

# Errors in data, weights, a run folder or the training itself; each message says where and what to
# do.
FAILURES = (OSError, ValueError, RunError, TrainingError, WeightsError)

# Beside the layouts of labelled images
UNLABELLED = unlabelled.LAYOUT

# The only recipe that trains no network
_OUTCOME = "lgg-outcome"
# The form of --start; FILE may be a package's folder
_START = "N=FILE, N a network's number,"
_AT_RANDOM = "random"

__all__ = [
    "FAILURES", "UNLABELLED", "RecipeError",
    "closing_lines", "compare_runs", "comparison_table", "explore_data",
    "find_recipe", "join_runs", "measure", "measure_unlabelled", "read_recipe", "read_starts",
    "train_outcome", "train_package",
]  # fmt: skip


def find_recipe(given: str, shipped: Path) -> Path:
    """The file that --recipe names: a path, or the name of a recipe that ships with Pleura.

    Raises:
        RecipeError: there is no recipe of that name.
    """
    path = Path(given)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = shipped / f"{given}.yaml"
    if not path.is_file():
        names = sorted(path.stem for path in shipped.glob("*.yaml"))
        nearest = difflib.get_close_matches(given, names, 1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise RecipeError(
            f"--recipe {given}: no such recipe; {hint}a .yaml file wanted, or one of "
            f"{', '.join(names)}"
        )

    return path


def read_recipe(path: Path, knobs: Sequence[str], fold: int | None) -> Recipe | outcome.Settings:
    """The recipe of a file, with its changed `knobs` (KEY=VALUE).

    `fold` (k-fold) validates on it and reports on the next.

    Raises:
        RecipeError: a recipe that cannot be used, or an unknown fold.
        ValueError: a knob is not KEY=VALUE.
    """
    changes = dict(_pairs("--set", knobs, "KEY=VALUE"))
    if recipe.read(path).get("id") == _OUTCOME:
        if changes or fold is not None:
            raise RecipeError(
                f"{path}: trains no network; --set and --fold are for recipes that do"
            )
        settings: outcome.Settings = _outcome().load(path)
        return settings

    wanted = recipe.load(path, changes)
    return wanted if fold is None else wanted.with_fold(fold)


def read_starts(given: Sequence[str]) -> dict[int, Path | None]:
    """Which network of a recipe starts from which file of weights: N=FILE.

    None for N=random: random weights, even if the recipe names published weights.

    Raises:
        ValueError: an argument is not N=FILE.
    """
    starts: dict[int, Path | None] = {}
    for number, file in _pairs("--start", given, _START):
        if not number.isdecimal() or not file:
            raise ValueError(f"--start {number}={file}: {_START} wanted")
        starts[int(number)] = None if file == _AT_RANDOM else Path(file)
    return starts


def _pairs(option: str, given: Sequence[str], form: str) -> Iterator[tuple[str, str]]:
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} {text}: {form} wanted")
        yield key, value


def train_package(
    wanted: Recipe,
    data: Path,
    out: Path,
    command: Sequence[str],
    starts: Mapping[int, Path | None],
    decoded: Path | None = None,
    instead: loop.Trial | None = None,
) -> dict[str, Any]:
    """Train, export, measure and report; returns the figures.

    `out` then holds package/ and report.html.
    """
    for layout in dict.fromkeys([wanted.layout, *map(wanted.layout_of, wanted.networks)]):
        labelled.look(layout, data)

    try:
        folder = loop.train(wanted, data, out, command, starts, decoded, instead)
    except PackageError as error:
        # The package that was to be written, not one from the caller
        raise TrainingError(str(error)) from error

    # Another process of torchrun writes the package, or nothing was to be trained.
    if folder is None:
        return {}
    with progress.bar("measuring the package") as done:
        evaluation = evaluate.run(folder, data, wanted.layout, wanted, out / "split.csv", done)
    evaluation.write(out)
    card.write(folder, wanted, evaluation.figures)
    package.amend(folder, {"metrics": evaluation.figures})

    with progress.spinner("writing the report"):
        report.write(evaluation, wanted, out, out / "report.html")
    return evaluation.figures


def closing_lines(wanted: Recipe, figures: Mapping[str, Any], out: Path) -> str:
    """The last lines of `pleura train`: the table of figures, the report, and how to serve it."""
    lines = [
        evaluate.table(figures, wanted.published),
        "",
        f"figures: {out / 'figures.json'} (every part of the images, every figure)",
        f"report:  {out / 'report.html'}",
        f"package: {out / 'package'}",
        f"try it:  pleura predict --model {out / 'package'} FILE|DIR",
    ]
    if wanted.task == package.SERVED_TASK:
        served = (out / "package").resolve()
        lines.append(
            f"serve it: `model: {served}` in pleura.yaml, then pleura serve -c pleura.yaml"
        )
    else:
        lines.append(f"no node serves a model of {wanted.task}")

    return "\n".join(lines)


def train_outcome(settings: outcome.Settings, data: Path, out: Path) -> dict[str, Any]:
    """The outcome model of a case study: figures only, because it reads no image."""
    figures: dict[str, Any] = _outcome().train(settings, data, out)
    return figures


def _outcome() -> ModuleType:
    """The outcome model's module, imported here because its library takes as long to load as all
    others together.

    Raises:
        MissingExtraError: scikit-learn is absent.
    """
    with needs_training_libraries(f"recipe {_OUTCOME}"):
        from training.measures import outcome
    return outcome


def measure(
    model: Path,
    data: Path,
    layout: Layout,
    split: Path | None,
    report_to: Path | None,
    recipes: Path,
) -> tuple[dict[str, Any], dict[str, float]]:
    """(figures of a package on labelled images, published figures of its recipe).

    Writes a page too if `report_to` is given.
    """
    labelled.look(layout, data)
    if split is not None:
        _require_own_split(model, split)
    known, knobs = _recipe_of(model, split, recipes)
    with progress.bar("measuring the package") as done:
        evaluation = evaluate.run(model, data, layout, known, split, done)

    if report_to is not None:
        with progress.spinner("writing the report"):
            report.write(evaluation, known, split.parent if split else None, report_to, knobs)

    return evaluation.figures, known.published if known else {}


def measure_unlabelled(model: Path, data: Path) -> tuple[dict[str, Any], str]:
    """(counts of a package's answers for images without labels, the same as text)."""
    if not data.is_dir():
        raise ValueError(f"{data}: no such folder; one with images wanted")
    with progress.bar("asking the package") as done:
        found = unlabelled.run(model, data, done)
    return found, unlabelled.table(found)


def _require_own_split(model: Path, path: Path) -> None:
    """Raise unless this split.csv is of the one run that trained the package.

    Otherwise images that trained it would count as unseen.
    """
    own = package.read_manifest(model).training.splits
    if own == [splits.digest(path)]:
        return

    found = {
        0: "the package does not say which split trained it",
        1: "the package was trained by another split; the split.csv of its own run wanted",
    }
    several = f"the networks of the package were trained by {len(own)} splits"
    raise ValueError(
        f"{path}: {found.get(len(own), several)}: measure it without --split, on images of which "
        "you know that they did not train it"
    )


def _recipe_of(model: Path, split: Path | None, recipes: Path) -> tuple[Recipe | None, str]:
    """The recipe that trained a package, and the origin of its knobs.

    The run's own recipe.json is taken if it lies beside `split`.
    """
    trained_by = package.read_manifest(model).training.recipe
    kept = split.with_name("recipe.json") if split else None
    if kept and kept.is_file():
        try:
            of_run = Recipe.model_validate_json(kept.read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{kept}: {error}; the recipe.json of the run that wrote {split} wanted"
            ) from error
        if of_run.id != trained_by:
            raise ValueError(
                f"{split}: of a run of {of_run.id}, the package was trained by {trained_by}; its "
                "own wanted"
            )
        return of_run, "every knob"

    known = next(
        (
            recipe.load(path)
            for path in recipes.glob("*.yaml")
            if recipe.read(path)["id"] == trained_by
        ),
        None,
    )

    return known, "shipped recipe of this name; the run's knobs may differ"


def compare_runs(folders: Sequence[Path], plot_to: Path | None) -> dict[str, Any]:
    """Finished runs beside each other (training/measures/compare.py); a plot too if one is wanted.

    The text comes from `comparison_table`.
    """
    with progress.spinner("loading and timing the packages"):
        compared = compare.compare(folders)
    if plot_to is not None:
        compare.plot(compared, plot_to)
    return compared


def comparison_table(compared: Mapping[str, Any]) -> str:
    """The comparison of `compare_runs`, as text."""
    return compare.table(compared)


def join_runs(folders: Sequence[Path], out: Path) -> None:
    """Join several runs' networks into one package (training/ensemble.py)."""
    ensemble.join(folders, out)


def explore_data(data: Path, layout: Layout, out: Path) -> str:
    """Write one HTML page about a data set; returns what its checks found, as text."""
    with progress.bar("reading the images") as done:
        return str(explore.explore(data, layout, out, done))
