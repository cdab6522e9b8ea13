"""Regenerate the tables of docs/conformance.md and docs/air.md: python -m tools.conformance"""

from __future__ import annotations

import sys

from tools.conformance.pages import PAGES, write_all


def main() -> None:
    """Write the pages, and print for each whether it changed."""
    changed = write_all()

    for name in PAGES:
        state = "written" if name in changed else "unchanged"
        sys.stdout.write(f"docs/{name}: {state}\n")


if __name__ == "__main__":
    main()
