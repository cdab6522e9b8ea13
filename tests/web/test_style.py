"""The contrast of the page's colours, computed from style.css: WCAG 2.2 AA in light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import daemon.web

STYLE = (Path(daemon.web.__file__).parent / "static" / "style.css").read_text()
# The least contrast: of text (success criterion 1.4.3), and of the keyboard's focus (1.4.11).
TEXT = 4.5
FOCUS = 3.0
PAIRS = [
    ("text", "ground", TEXT), ("text", "card", TEXT), ("text", "plain-ground", TEXT),
    ("quiet", "ground", TEXT), ("quiet", "card", TEXT),
    ("link", "ground", TEXT), ("link", "card", TEXT), ("accent-text", "accent", TEXT),
    ("calm", "calm-ground", TEXT), ("alert", "alert-ground", TEXT),
    ("bad", "bad-ground", TEXT), ("wait", "wait-ground", TEXT),
    ("focus", "ground", FOCUS), ("focus", "card", FOCUS),
]  # fmt: skip


def _colours(scheme: str) -> dict[str, tuple[int, int, int]]:
    light, dark = (block for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2])
    found = re.findall(r"--([a-z-]+): #(\w\w)(\w\w)(\w\w)", light if scheme == "light" else dark)
    return {name: (int(r, 16), int(g, 16), int(b, 16)) for name, r, g, b in found}


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [value / 255 for value in colour]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_pair_of_colours_has_the_contrast_of_level_aa(scheme: str) -> None:
    colours = _colours(scheme)
    assert _contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    short = {
        f"{front} on {ground}": round(contrast, 2)
        for front, ground, least in PAIRS
        if (contrast := _contrast(colours[front], colours[ground])) < least
    }
    assert short == {}


def test_the_keyboards_focus_is_visible_and_no_rule_hides_it() -> None:
    assert re.search(r":focus-visible \{[^}]*outline: \d+px solid var\(--focus\)", STYLE)
    assert "outline: none" not in STYLE
    assert "outline: 0" not in STYLE
