"""The page *Model*: the card, figures and calibration of the package that the settings name, and
statistics of its answers at this site.

It reads model.yaml and README.md as text. It does not validate the package. The role that loads it
does (inference/package.py), which this process cannot import because it loads torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from starlette.responses import Response

from daemon.drift import (
    EVERY_AE,
    Agreement,
    Alarm,
    Comparison,
    Drift,
    Week,
    agreement,
    comparison,
    drift,
)
from daemon.ledger.view import View
from daemon.web.visit import Visit

# How old the figures of this site may be.
_SELDOM_S = 30.0
# The longest model.yaml or card that is read.
_MOST_BYTES = 4 * 1024 * 1024
# The figures to show, in this order, if the manifest has them.
_FIGURES = (
    "auc",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "average_precision",
    "dice_positives",
)


@dataclass(frozen=True)
class Figure:
    """One figure of the manifest, 0 to 1, with its 95 % interval if it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class Card:
    """A model package's card and figures."""

    id: str
    version: str
    digest: str
    threshold: float | None
    operating_point: str
    licence: str
    intended_use: str
    trained: str
    calibration: dict[str, Any] = field(default_factory=dict)
    networks: list[tuple[str, str, int]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    # (mean probability, share of positives, images) of each bin of the reliability diagram.
    reliability: list[tuple[float, float, int]] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class AtSite:
    """The model's answers at this site, week by week, all senders together; the newest first."""

    weeks: tuple[Week, ...]
    # The baseline weeks; None: none were set.
    baseline: Week | None
    alarms: tuple[Alarm, ...]
    # Agreement with radiologists' reports; None: the site supplies none.
    agreement: Agreement | None
    # Comparison with a shadow model; None: none has looked at an image.
    comparison: Comparison | None

    @classmethod
    def look(cls, view: View) -> AtSite:
        """Ask the ledger."""
        found: Drift = drift(view)
        weeks = tuple(reversed(found.of(EVERY_AE)))
        return cls(
            weeks, found.baseline_of.get(EVERY_AE), found.alarms, agreement(view), comparison(view)
        )


def page(visit: Visit) -> Response:
    """The card, and the figures of this site."""
    node = visit.node
    card = card_of(node.settings.model)
    at_site = node.once_every(_SELDOM_S, "drift", lambda: AtSite.look(node.view))
    return visit.page("model.html", title=visit.texts.say("model"), card=card, site=at_site)


def card_of(model: str) -> Card | None:
    """The card of `default`, a folder or a zip; None if it cannot be read."""
    folder = _default_folder() if model == "default" else Path(model)
    manifest = folder if folder.is_file() else folder / "model.yaml"
    try:
        changed_at = manifest.stat().st_mtime_ns
    except OSError:
        return None
    return _card(folder, changed_at)


@lru_cache(maxsize=4)
def _card(folder: Path, _changed_at: int) -> Card | None:
    try:
        manifest = _read(folder, "model.yaml")
        found = yaml.safe_load(manifest)
        return _from_manifest(found, manifest, _read(folder, "README.md"))
    except (OSError, KeyError, ValueError, TypeError, yaml.YAMLError, zipfile.BadZipFile):
        return None


def _default_folder() -> Path:
    """The folder of the model that ships; found without importing inference."""
    spec = importlib.util.find_spec("inference")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) / "models" / "default" if places else Path("/nonexistent")


def _read(folder: Path, name: str) -> bytes:
    """A file of the package; b"" if it is absent."""
    if folder.is_file():
        with zipfile.ZipFile(folder) as package:
            if name not in package.namelist():
                return b""
            with package.open(name) as packed:
                return packed.read(_MOST_BYTES)

    path = folder / name
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_MOST_BYTES)


def _from_manifest(found: dict[str, Any], manifest: bytes, text: bytes) -> Card:
    classifier = found.get("classifier") or {}
    training = found.get("training") or {}
    metrics = found.get("metrics") or {}

    return Card(
        id=str(found["id"]),
        version=str(found["version"]),
        digest=hashlib.sha256(manifest).hexdigest(),
        threshold=_as_float(classifier.get("threshold")),
        operating_point=str(classifier.get("operating_point", "")),
        licence=str(found.get("licence", "")),
        intended_use=str(found.get("intended_use", "")),
        trained=str(training.get("date", "")),
        calibration=dict(classifier.get("calibration") or {}),
        networks=_networks(found),
        figures=_figures(metrics),
        reliability=_reliability(metrics),
        text=text.decode("utf-8", "replace"),
    )


def _networks(found: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Role, encoder or architecture, side in pixels."""
    networks = []
    for role in ("plausibility", "classifier", "segmenter"):
        network = found.get(role)
        if isinstance(network, dict):
            arguments = network.get("arguments") or {}
            members = arguments.get("members") or [network]
            inner = members[0].get("arguments") or {}
            name = str(inner.get("encoder") or network.get("architecture", ""))
            networks.append((role, name, int(network.get("side", 0))))
    return networks


def _figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """The figures of all images: in a cross-fitted package's own group, or at the top level."""
    fitted = metrics.get("cross_fitted")
    whole = fitted.get("all") if isinstance(fitted, dict) else metrics
    if not isinstance(whole, dict):
        return []

    figures = []
    for name in _FIGURES:
        figure = whole.get(name)
        if isinstance(figure, int | float):
            figures.append(Figure(name, float(figure)))
        elif isinstance(figure, dict) and _as_float(figure.get("value")) is not None:
            low, high = figure.get("interval_95") or (None, None)
            figures.append(
                Figure(
                    name, float(figure["value"]), _as_float(low), _as_float(high),
                    figure.get("images"),
                )
            )  # fmt: skip
    return figures


def _reliability(metrics: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    fitted = metrics.get("cross_fitted")
    rows = fitted.get("reliability") if isinstance(fitted, dict) else metrics.get("reliability")
    if not isinstance(rows, list):
        return []
    return [
        (float(row["probability"]), float(row["positive"]), int(row.get("images", 0)))
        for row in rows[:50]
    ]


def _as_float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
