"""One claimed image on its way through the analyse role, and the record of its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.ledger import Completion, ImageJob, StoredResult
from daemon.ledger.timeline import Stopwatch
from inference.finding import Outcome
from inference.pipeline import Answer, Pipeline, Reading

# The attributes that name an X-ray system, and how many characters of their text are kept.
_SYSTEM_KEYWORDS = ("Manufacturer", "ManufacturerModelName")
_SYSTEM_CHARACTERS = 128


@dataclass(eq=False)
class ClaimedImage:
    """One claimed image in work. The claim fixes its model, its settings and what is owed."""

    job: ImageJob
    pipeline: Pipeline
    # The kinds of result that each destination is owed.
    owed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reading: Reading | None = None
    answer: Answer | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)

    def accession_number(self) -> str:
        """The Accession Number; "" if it is absent or cannot be read."""
        return self._texts("AccessionNumber")[0]

    def device_model(self) -> str | None:
        """Manufacturer and model name of the X-ray system; None if the header does not tell."""
        words = [text.strip() for text in self._texts(*_SYSTEM_KEYWORDS)]
        name = " ".join(word for word in words if word)
        # A database does not take every character that arbitrary bytes decode to.
        shown = "".join(character if character.isprintable() else "?" for character in name)
        return shown[:_SYSTEM_CHARACTERS] or None

    def _texts(self, *keywords: str) -> list[str]:
        """Attributes of the header as text; all "" if one of them cannot be decoded."""
        unknown = [""] * len(keywords)
        header = self.reading.header if self.reading is not None else None
        if header is None:
            return unknown

        try:
            return [str(header.get(keyword, "") or "") for keyword in keywords]
        except Exception:
            # Arbitrary bytes may raise anything.
            return unknown


def model_name(pipeline: Pipeline) -> str:
    """The model package as the ledger names it: id, version and digest."""
    identity = pipeline.engine.identity
    return f"{identity.id} {identity.version} {identity.digest}"


def completion_of(
    image: ClaimedImage, outcome: Outcome, stored: tuple[StoredResult, ...], accession: str | None
) -> Completion:
    """The end of an image as the ledger records it. `accession`: its accession_digest()."""
    finding = outcome.finding

    return Completion(
        state=outcome.state.value,
        content_digest=outcome.content_digest,
        study_instance_uid=outcome.study_instance_uid,
        reason=outcome.reason,
        detail="; ".join(part for part in (outcome.detail, *outcome.notes) if part),
        probability=finding.probability if finding else None,
        positive=finding.positive if finding else None,
        model=model_name(image.pipeline),
        device=str(image.pipeline.engine.device),
        device_model=image.device_model(),
        accession_digest=accession,
        results=stored,
        steps=image.watch.steps,
    )


def end_in_words(facts: Mapping[str, Any], detail: str) -> str:
    """A text such as "analysed, positive, score 0.973, 412 ms, to pacs"."""
    words = [str(facts["state"] or "left to a later owner")]
    if facts["reason"]:
        words[0] += f" ({facts['reason']}: {detail})"
    if facts["positive"] is not None:
        words.append("positive" if facts["positive"] else "not detected")
    if facts["score"] is not None:
        words.append(f"score {facts['score']:.3f}")
    words.append(f"{facts['milliseconds']} ms")
    words.append(f"to {', '.join(facts['destinations'])}" if facts["destinations"] else "not sent")
    return ", ".join(words)
