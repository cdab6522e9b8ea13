"""One HTML file that reports a model package's results on labelled images: figures, curves,
breakdown, cases.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from training.measures import report_plots as plots
from training.measures.answers import Answer
from training.measures.evaluate import Evaluation
from training.measures.figures import ALONE, CAVEAT, beside, measured
from training.measures.thresholds import SCORE, best_of
from training.recipe import Recipe

# Pictures of each kind
_SHOWN = 4
_BREAKDOWN_DRAWS = 500

# The group that an answer belongs to; None: no group
Group = Callable[[Answer], str | None]


def write(
    evaluation: Evaluation,
    recipe: Recipe | None,
    run_folder: Path | None,
    out: Path,
    knobs: str = "every knob",
) -> Path:
    """Write the report into the file `out`, which needs no other file.

    From `run_folder`, where there: every curves/*.csv, and search.csv, the rules that were tried
    (thresholds.Search). `knobs` says whose the recipe's are.
    """
    sections = [
        *_head(evaluation, recipe),
        *_published(evaluation, recipe),
        *_all_figures(evaluation),
    ]
    sections += [*_curves(evaluation), *_search(run_folder), *_breakdown(evaluation)]
    sections += [*_learning(run_folder), *_cases(evaluation), *_recipe(recipe, knobs)]

    title = escape(f"{evaluation.figures['model']} {evaluation.figures['version']}")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style>"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page + "<main>" + "\n".join(sections) + "</main></html>\n", encoding="utf-8")

    return out


def _head(evaluation: Evaluation, recipe: Recipe | None) -> Iterator[str]:
    figures = evaluation.figures
    positive = sum(answer.positive for answer in evaluation.answers)
    patients = len({answer.patient for answer in evaluation.answers})
    yield f"<h1>{escape(figures['model'])} {escape(figures['version'])}</h1>"
    yield "<p class=warning><b>Research use only, not for diagnosis.</b></p>"
    if figures["warning"]:
        yield f"<p class=warning><b>{escape(figures['warning'])}.</b></p>"

    if figures["trained_on"]:
        yield (
            f"<p class=warning>{figures['trained_on']} of the {figures['images']} images trained "
            "this model: figures of <b>all</b> images are better than those of new images would "
            "be.</p>"
        )

    if "jpeg_baseline" in figures:
        yield (
            "<p class=warning>Some images were re-wrapped from copies, and that alone tells much "
            "of their label: every figure is given for those <b>as published</b> (JPEG Baseline) "
            "alone as well.</p>"
        )

    for note in figures["notes"]:
        yield f"<p class=warning>{escape(note)}.</p>"
    rows = {
        "recipe": f"{recipe.case_study or ''} {recipe.about}".strip() if recipe else "",
        "images": f"{figures['images']}, {positive} positive, of {patients} patients",
        "labels": figures["labels"],
        "threshold": f"positive from a probability of {figures['threshold']:g}",
        figures["report"]["key"] or "split": figures["report"]["note"],
    }
    yield _table(
        [], [[name.replace("_", " "), value] for name, value in rows.items() if value], "facts"
    )

    yield (
        "<p>In brackets 95 % intervals, by bootstrap over patients; after the dot the number of "
        "images.</p>"
    )


def _published(evaluation: Evaluation, recipe: Recipe | None) -> Iterator[str]:
    found = beside(evaluation.figures, recipe.published) if recipe else []
    if recipe is None or not found:
        return
    yield f"<h2>Published for {escape(recipe.case_study or recipe.id)}, and ours</h2>"
    groups = list(dict.fromkeys(group for _, _, ours in found for group in ours))
    rows = [
        [name, said, *(_cell(ours.get(group)) for group in groups)] for name, said, ours in found
    ]
    titles = [_title(group) for group in groups]
    yield _table(
        ["", "published", *titles],
        [[row[0].replace("_", " "), *row[1:]] for row in rows],
        "figures",
    )

    yield f"<p>Published figures are no measure of ours: {escape(CAVEAT)}.</p>"


def _all_figures(evaluation: Evaluation) -> Iterator[str]:
    figures, key = evaluation.figures, evaluation.figures["report"]["key"]
    columns: dict[str, Mapping[str, Any]] = {}
    for group in ("all", "jpeg_baseline"):
        own = figures.get(group, {})
        columns |= {_title(f"{group} {key}"): own[key]} if key in own else {}
        columns |= {_title(group): own} if own else {}

    names = [
        name
        for name, node in figures["all"].items()
        if "value" in node and not name.startswith("auc_")
    ]
    yield "<h2>Figures</h2>"

    rows = [
        [
            name.replace(ALONE, " *").replace("_", " "),
            *(_cell(column.get(name)) for column in columns.values()),
        ]
        for name in names
    ]
    yield _table(["", *columns], rows, "figures")

    yield (
        "<p>* of the segmenter alone, whatever the classifier says; figures of masks without * "
        "are of both stages. Dice and IoU of all images count 1 where both masks are empty; "
        "...positives are means over images with a true mask; pixel figures pool the pixels of "
        "all images. ...finding nothing: what an empty mask of every image scores; a system that "
        "does not reach more finds nothing.</p>"
    )


def _curves(evaluation: Evaluation) -> Iterator[str]:
    shown, name = _shown(evaluation)
    labels = np.array([answer.positive for answer in shown])
    if labels.all() or not labels.any():
        return

    scores = np.array([answer.probability for answer in shown])
    threshold = evaluation.figures["threshold"]
    groups = {name: (scores, labels)}
    published = np.array([answer.as_published for answer in shown])
    if not published.all() and 0 < labels[published].sum() < published.sum():
        groups["as published alone"] = scores[published], labels[published]

    yield f"<h2>Decisions</h2><p>Of {escape(name)}; dots: the threshold in use.</p>"
    yield _picture(plots.ranking(groups, threshold), "ROC and precision-recall curves")
    yield _picture(plots.decisions(scores, labels, threshold), "Confusion matrix and calibration")
    yield "<h3>What another threshold of the classifier would do</h3>"
    yield _picture(
        plots.thresholds(_swept(shown), threshold, "For looking, not for choosing"),
        "Threshold sweep",
    )

    chose = (
        evaluation.figures["report"]["part"] == "validate"
        and evaluation.figures["report"]["key"] is not None
    )
    yield (
        "<p>These images chose the threshold in use: figures at it are too good.</p>"
        if chose
        else (
            "<p>The threshold in use comes with the package; to take the best here would "
            "flatter.</p>"
        )
    )


def _swept(answers: Sequence[Answer]) -> dict[str, tuple[plots.Scores, plots.Scores]]:
    """Sensitivity, specificity and the score of the two-stage rule at each threshold."""
    grid = np.linspace(0, 1, 201)
    scores = np.array([answer.probability for answer in answers])
    labels = np.array([answer.positive for answer in answers])

    # (thresholds, images)
    said = scores >= grid[:, None]
    curves = {
        "sensitivity": (grid, said[:, labels].mean(1)),
        "specificity": (grid, 1 - said[:, ~labels].mean(1)),
    }
    masked = np.array([answer.true is not None for answer in answers])
    drawn, empty = (
        np.array([answer.dice(found) or 0.0 for answer in answers]) for found in (True, False)
    )
    if masked.any():
        curves["mean Dice of both stages"] = grid, np.where(said, drawn, empty)[:, masked].mean(1)

    if (masked & labels).any():
        curves["Dice of positives"] = grid, np.where(said, drawn, empty)[:, masked & labels].mean(1)
    return curves


def _search(run_folder: Path | None) -> Iterator[str]:
    path = run_folder / "search.csv" if run_folder else None
    if path is None or not path.is_file():
        return
    rows = [row for row in _numbers(path) if SCORE in row]
    best = best_of(rows)
    yield "<h2>Search of the rule that makes a mask of a map</h2>"
    words = ", ".join(f"{name} {value:g}" for name, value in best.items() if name != SCORE)
    yield (
        f"<p>{len(rows)} rules were tried on the validation images; the best reached "
        f"{best[SCORE]:.3f} there ({escape(words)}). A colour is the best rule with these two "
        "values; the diamond is the one that was taken.</p>"
    )
    yield _picture(plots.searched(rows, best, SCORE), "Rules tried")


def _age(answer: Answer) -> str:
    age = answer.age_years
    # 413 is in the data
    if age is None or not 0 <= age <= 120:
        return "age unknown"
    return next(name for limit, name in _AGES if age < limit)


def _size(answer: Answer) -> str | None:
    share = answer.true_share
    return next(name for limit, name in _SIZES if share < limit) if share else None


_AGES = (
    (18, "under 18"),
    (40, "18 to 39"),
    (60, "40 to 59"),
    (80, "60 to 79"),
    (121, "80 and older"),
)
_SIZES = ((0.005, "mask < 0.5 % of the image"), (0.02, "mask 0.5 to 2 %"), (1.1, "mask > 2 %"))
_GROUPS: tuple[tuple[Group, Sequence[str]], ...] = (
    (lambda answer: f"view {answer.view or 'unknown'}", ()),
    (lambda answer: f"sex {answer.sex or 'unknown'}", ()),
    (_age, [name for _, name in _AGES]),
    (_size, [name for _, name in _SIZES]),
    (lambda answer: "as published" if answer.as_published else "re-wrapped", ()),
)
_BREAKDOWN = ("sensitivity", "specificity", "auc", "dice_positives")


def _breakdown(evaluation: Evaluation) -> Iterator[str]:
    shown, name = _shown(evaluation)
    groups = [("together", shown), *_grouped(shown)]

    threshold = evaluation.figures["threshold"]
    found = [
        (group, answers, measured(answers, threshold, _BREAKDOWN_DRAWS))
        for group, answers in groups
    ]
    yield (
        f"<h2>Breakdown</h2><p>Of {escape(name)}. Groups of a few images say little: look at the "
        "intervals.</p>"
    )
    rows = [
        [
            group,
            str(len(answers)),
            str(sum(answer.positive for answer in answers)),
            *(_cell(own.get(figure)) for figure in _BREAKDOWN),
        ]
        for group, answers, own in found
    ]
    yield _table(
        ["", "images", "positive", *(figure.replace("_", " ") for figure in _BREAKDOWN)],
        rows,
        "figures",
    )

    lines = [(f"{group} ({len(answers)})", own) for group, answers, own in found]
    yield _picture(
        plots.breakdown(lines, [figure for figure in _BREAKDOWN if figure in found[0][2]]),
        "Breakdown",
    )


def _grouped(answers: Sequence[Answer]) -> Iterator[tuple[str, list[Answer]]]:
    """The answers of each group, for every way to group them that gives more than one."""
    for group_of, order in _GROUPS:
        members: dict[str, list[Answer]] = {}
        for answer in answers:
            if group := group_of(answer):
                members.setdefault(group, []).append(answer)
        if len(members) < 2:
            continue

        known = [group for group in order if group in members]
        for group in [*known, *sorted(members.keys() - set(known))]:
            yield group, members[group]


def _learning(run_folder: Path | None) -> Iterator[str]:
    for path in sorted((run_folder / "curves").glob("*.csv")) if run_folder else ():
        if rows := _numbers(path):
            yield f"<h2>Learning: {escape(path.stem)}</h2>"
            yield _picture(plots.curve(rows), f"Learning curves of {path.stem}")


def _cases(evaluation: Evaluation) -> Iterator[str]:
    shown, name = _shown(evaluation)
    threshold = evaluation.figures["threshold"]
    said = [answer for answer in shown if answer.probability >= threshold]
    drawn = [answer for answer in said if answer.positive and answer.true and answer.found]
    overlap = sorted(drawn, key=lambda answer: -(answer.dice() or 0))
    empty = [answer for answer in said if not answer.found]
    missed = [answer for answer in shown if answer.positive and answer.probability < threshold]
    alarms = [answer for answer in said if not answer.positive]

    # The worst are taken from the other end, and never shown twice.
    kinds = (
        ("Best", "the highest Dice", overlap[: min(_SHOWN, (len(overlap) + 1) // 2)], len(overlap)),
        ("Worst", "the lowest Dice", overlap[::-1][: min(_SHOWN, len(overlap) // 2)], len(overlap)),
        ("Failure: positive with an empty mask",
         "the classifier says positive, the segmenter draws nothing",
         sorted(empty, key=lambda answer: (-answer.positive, -answer.probability)), len(empty)),
        ("Failure: missed",
         "positive, and the lowest probabilities: nobody is shown what the segmenter found",
         sorted(missed, key=lambda answer: answer.probability), len(missed)),
        ("Failure: false alarm", "negative, and the highest probabilities",
         sorted(alarms, key=lambda answer: -answer.probability), len(alarms)),
    )  # fmt: skip

    yield (
        f"<h2>Cases</h2><p>Of {escape(name)}. <span class=true>&#9644;&#9644; annotated</span> "
        "<span class=found>&#9644; &#9644; found by the segmenter</span></p>"
    )

    for title, what, chosen, count in kinds:
        yield f"<h3>{escape(title)}</h3><p>{escape(what)}; {count} in all</p>"
        yield (
            "<div class=row>"
            + "".join(_case(evaluation, answer) for answer in chosen[:_SHOWN])
            + "</div>"
        )


def _case(evaluation: Evaluation, answer: Answer) -> str:
    look = evaluation.look(answer)
    dice = answer.dice()
    about = [f"probability {answer.probability:.3f}", "positive" if answer.positive else "negative"]
    about += [f"Dice {dice:.3f}"] if dice is not None and answer.positive else []
    about += (
        [f"{answer.found:,} px found", f"{answer.true:,} px annotated"]
        if answer.true is not None
        else []
    )

    about += [answer.view] if answer.view else []
    about += [] if answer.as_published else ["re-wrapped copy"]
    picture = plots.case(look.pixels, look.true, look.found)
    caption = f"{escape(answer.image_id)}<br>{escape(' · '.join(about))}"

    return (
        f'<figure><img alt="{escape(answer.image_id)}" src="{picture}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _recipe(recipe: Recipe | None, knobs: str) -> Iterator[str]:
    if recipe is not None:
        document = escape(recipe.model_dump_json(indent=2, by_alias=True))
        yield (
            f"<h2>Recipe</h2><details><summary>{escape(knobs)}</summary>"
            f"<pre>{document}</pre></details>"
        )


def _shown(evaluation: Evaluation) -> tuple[list[Answer], str]:
    """The answers that curves and cases are drawn from, and their name.

    They are the reported part, if the split has one.
    """
    report = evaluation.figures["report"]
    reported = [answer for answer in evaluation.answers if answer.of(report["part"])]
    if report["key"] is None or not reported:
        return evaluation.answers, f"all {len(evaluation.answers)} images"
    return reported, f"{report['key'].replace('_', ' ')} ({len(reported)} images)"


def _numbers(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV of numbers, without its empty cells."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _title(group: str) -> str:
    group, _, part = group.partition(" ")
    title = {"all": "all images", "jpeg_baseline": "as published alone"}[group]
    return f"{title}, {part.replace('_', ' ')}" if part else title


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    low, high = figure["interval_95"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f}) · {figure.get('of', figure['images'])}"


def _picture(uri: str, what: str) -> str:
    return f'<img class=plot alt="{escape(what)}" src="{uri}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<table class="{kind}"><tr>{head}</tr>{body}</table>'


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1.5rem 4rem }
h1 { margin: 0 } h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid #ccc }
h3 { margin: 1.5rem 0 0 }
p { margin: .5rem 0; max-width: 52rem }
.warning { background: #fff4d6; border-left: 4px solid #E69F00; padding: .4rem .8rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px;
  margin: .8rem 0 }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0;
  border-bottom: 1px solid #eee }
td:first-child { font-weight: 600; white-space: nowrap } .figures td { white-space: nowrap }
.facts td { font-size: 14px }
img { max-width: 100% } .plot { display: block }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
figure { margin: .5rem 0; width: 255px }
figure img { width: 100%; display: block; background: #000 }
figcaption { font-size: 12px; overflow-wrap: anywhere }
.true { color: #B37A00; font-weight: 600 }
.found { color: #1479AE; font-weight: 600; margin-left: 1rem }
pre { font-size: 12px; background: #f6f6f6; padding: .8rem; overflow-x: auto }
"""
