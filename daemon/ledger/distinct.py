"""The distinct values of an indexed column, found without reading the rows that repeat them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


def distinct(
    conn: Connection, column: sa.Column[Any], where: sa.ColumnElement[bool] | None = None
) -> Iterator[Any]:
    """The values of the rows that `where` holds for, ascending, by skipping in the column's index
    from each to the next. NULL is left out.
    """
    smallest = sa.select(sa.func.min(column))
    if where is not None:
        smallest = smallest.where(where)

    value = conn.execute(smallest).scalar()
    while value is not None:
        yield value
        value = conn.execute(smallest.where(column > value)).scalar()
