"""A shadow model beside the model: how often they agree, and which agrees better with reports."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.drift.agreement import Agreement, agreed
from daemon.drift.statistics import Interval, wilson
from daemon.ledger import Inspection, Pairs


@dataclass(frozen=True)
class Comparison:
    """The newest images that both models answered."""

    pairs: Pairs
    # Agreement with the same reports; None: the site supplies no reports on these images.
    model_with_reports: Agreement | None = None
    shadow_with_reports: Agreement | None = None

    @property
    def model(self) -> str:
        """Name and version of the model."""
        return named(self.pairs.model)

    @property
    def shadow(self) -> str:
        """Name and version of its shadow."""
        return named(self.pairs.shadow)

    @property
    def images(self) -> int:
        """How many images both answered."""
        return self.agreed + self.pairs.only_model + self.pairs.only_shadow

    @property
    def agreed(self) -> int:
        """How many of them got the same answer."""
        return self.pairs.both_positive + self.pairs.both_negative

    @property
    def agreement(self) -> tuple[float | None, Interval]:
        """The share that got the same answer, and its 95 % interval."""
        share = self.agreed / self.images if self.images else None
        return share, wilson(self.agreed, self.images)


def comparison(inspect: Inspection) -> Comparison | None:
    """The comparison with the shadow that looked last; None: no shadow has looked at an image."""
    shadow = inspect.shadow.newest()
    pairs = inspect.shadow.pairs(shadow) if shadow is not None else None
    if pairs is None:
        return None

    both = inspect.shadow.reported(pairs.shadow, pairs.model)
    return Comparison(
        pairs,
        model_with_reports=agreed([model for model, _ in both]),
        shadow_with_reports=agreed([shadow for _, shadow in both]),
    )


def named(model: str) -> str:
    """Name, version and the first digits of the digest."""
    name, _, digest = model.rpartition(" ")
    return f"{name} ({digest[:8]})" if name else model
