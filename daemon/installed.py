"""The installation: our version, its files, its extras, conflicting distributions."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import re
from functools import cache
from pathlib import Path

_PACKAGES = ("daemon", "inference", "training")
# Extra -> the modules that it brings, and the distribution of each.
_EXTRAS = {
    "oidc": {"jwt": "pyjwt", "cryptography": "cryptography"},
    "postgresql": {"psycopg": "psycopg"},
}


@cache
def version() -> str:
    """Pleura's version, for people."""
    try:
        return importlib.metadata.version("pleura")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def shipped_file(package: str, name: str) -> Path:
    """A file that ships inside a package of the wheel, or lies in the checkout (hatch_build.py)."""
    in_wheel = Path(str(importlib.resources.files(package))) / name
    if in_wheel.exists():
        return in_wheel

    checkout = Path(__file__).resolve().parent.parent
    in_docs = checkout / "docs" / name
    return in_docs if in_docs.exists() else checkout / "config" / name


def lacking(extra: str) -> str:
    """Which parts of an extra are missing, and what to do; "" if it is complete."""
    for module, distribution in _EXTRAS[extra].items():
        if importlib.util.find_spec(module) is None:
            return (
                f"needs {distribution}, which is not installed; "
                f"install Pleura's extra {extra} (docs/install.md)"
            )
    return ""


def conflicting_distribution() -> str:
    """Another distribution that owns a package of our names, and what to do; "" without conflict.

    Our packages have plain names. Where another distribution owns the same name, the import order
    decides which code runs.
    """
    # metadata.packages_distributions() reads every file of every distribution, which costs 0.15 to
    # 0.5 s at each start.
    ours = re.compile(rf"(?m)^({'|'.join(_PACKAGES)})\b(?:/|\.py\b|$)")

    for distribution in importlib.metadata.distributions():
        listed = distribution.read_text("top_level.txt") or distribution.read_text("RECORD") or ""
        # The plain search is quicker than the pattern, which then looks at few of them.
        is_suspect = any(f"\n{package}" in f"\n{listed}" for package in _PACKAGES)
        match = ours.search(listed) if is_suspect else None
        if match and distribution.metadata["Name"] != "pleura":
            return (
                f"the Python package {match[1]!r} is also installed by "
                f"{distribution.metadata['Name']}; install Pleura into a separate virtual "
                "environment"
            )
    return ""
