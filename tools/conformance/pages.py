"""The pages that hold generated tables: which table stands in which block of which page."""

from __future__ import annotations

from collections.abc import Mapping

from inference.results.kinds import KINDS
from tools.conformance import DOCS, Table, air, content, filled, network, objects, received

PAGES: dict[str, Mapping[str, Table]] = {
    "conformance.md": {
        "services": network.services,
        "implementation": network.implementation,
        "accepted": network.accepted,
        "rejections": network.rejections,
        "answers": network.answers,
        "proposed": network.proposed,
        "verdicts": network.verdicts,
        "failures": network.failures,
        "times": network.times,
        "settings": network.settings,
        "used": received.used,
        "reasons": received.reasons,
        "character sets": received.character_sets,
        "classes": objects.classes,
        "modules": objects.modules,
        "common": objects.common,
        **{f"attributes of {kind.lower()}": objects.own(kind) for kind in KINDS},
        "content tree": content.content_tree,
        "codes": content.code_table,
    },
    "air.md": {"primitives": air.primitives},
}


def current(name: str) -> str:
    """The page of that name in docs/, with every table as the code makes it now."""
    return filled((DOCS / name).read_text(encoding="utf-8"), PAGES[name])


def write_all() -> list[str]:
    """Write every page whose tables changed; return the names of these pages."""
    changed = []

    for name in PAGES:
        path = DOCS / name
        text = current(name)
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            changed.append(name)

    return changed
