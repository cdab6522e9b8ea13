"""The page's texts: each in English and in German, with the same values."""

from __future__ import annotations

from string import Formatter

from daemon.web.texts import TABLE


def _values(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_each_text_is_in_both_languages_and_names_the_same_values() -> None:
    for key, (english, german) in TABLE.items():
        assert english.strip(), key
        assert german.strip(), key
        assert _values(english) == _values(german), key
