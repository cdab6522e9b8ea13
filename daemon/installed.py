"""What is installed: our version, the files shipped beside the code, and nobody else's packages under our names."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
from pathlib import Path

_PACKAGES = ("daemon", "inference", "training")


def version() -> str:
    """Ours, for a person."""
    try:
        return importlib.metadata.version("pleura")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def shipped_file(package: str, name: str) -> Path:
    """A file that ships inside a package of the wheel, or lies in the checkout's config folder."""
    path = Path(str(importlib.resources.files(package))) / name
    return path if path.exists() else Path(__file__).resolve().parent.parent / "config" / name


def stranger() -> str:
    """Who else has a package of one of our names, and what to do; "" where nobody has.

    Our packages have plain names; where another distribution owns one of them too, imports would be a lottery.
    """
    # metadata.packages_distributions() looks at every file of every distribution: 0.15 to 0.5 s at each start.
    ours = re.compile(rf"(?m)^({'|'.join(_PACKAGES)})\b(?:/|\.py\b|$)")
    for distribution in importlib.metadata.distributions():
        listed = distribution.read_text("top_level.txt") or distribution.read_text("RECORD") or ""
        found = ours.search(listed)
        if found and distribution.metadata["Name"] != "pleura":
            return (
                f"the Python package {found[1]!r} is also installed by {distribution.metadata['Name']}; "
                "give Pleura a virtual environment of its own"
            )
    return ""
