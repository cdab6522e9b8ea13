"""The page's texts: each exists in English and German, with the same placeholders."""

from __future__ import annotations

from string import Formatter

from daemon.web.texts import TABLE


def _values(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_each_text_is_in_both_languages_with_the_same_placeholders() -> None:
    for key, (english, german) in TABLE.items():
        assert english.strip(), key
        assert german.strip(), key
        assert _values(english) == _values(german), key
