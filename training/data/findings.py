"""Findings about labelled images: while they were read, and by checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from training.data.cases import Case

_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One kind of thing noticed, and where. An error stops a training run, a warning does not."""

    level: Literal["error", "warning"]
    what: str
    # Names of images, with what was found
    where: tuple[str, ...]

    def __str__(self) -> str:
        named = ", ".join(self.where[:_NAMED]) + (", ..." if len(self.where) > _NAMED else "")
        return f"{self.level}: {self.what}: " + (
            f"{len(self.where)} ({named})" if len(self.where) > 1 else named
        )


class Cases(list[Case]):
    """Labelled images, and what was noticed while they were read."""

    def __init__(self, cases: Iterable[Case], findings: Iterable[Finding] = ()) -> None:
        super().__init__(cases)
        self.findings = tuple(finding for finding in findings if finding.where)
