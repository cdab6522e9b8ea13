"""Generates the tables of docs/conformance.md and docs/air.md from the code, and from objects that
it builds.

A page is hand-written prose with blocks between `<!-- name -->` and `<!-- end -->`. Each block
holds the generated table of that name. After an intended change: python -m tools.conformance
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Returns the table's lines.
Table = Callable[[], Iterable[str]]

_BLOCK = re.compile(r"(<!-- (?!end -->)([a-z][a-z ]*) -->\n)(.*?)(<!-- end -->\n)", re.DOTALL)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [list(map(str, row)) for row in rows]
    assert all(len(row) == len(heads) for row in lines)
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(row) + " |" for row in lines),
    ]


def filled(page: str, tables: Mapping[str, Table]) -> str:
    """The page with each block replaced by its current table.

    Raises:
        KeyError: a block has no table. ValueError: a table has no block, or several.
    """
    names = [block[1] for block in _BLOCK.findall(page)]

    if sorted(names) != sorted(tables):
        missing = {*tables} ^ {*names}
        if {*names} - {*tables}:
            raise KeyError(f"no such table: {sorted(missing)}")
        raise ValueError(f"each table has one block; look at {sorted(missing) or sorted(names)}")

    return _BLOCK.sub(
        lambda block: block[1] + "\n".join(tables[block[2]]()) + "\n" + block[4], page
    )
