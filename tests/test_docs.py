"""The pages quote the program: each command parses, each setting and module exists, each example of
settings is accepted, and each line of the runbook is a line that the code can log.
"""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from daemon import config
from daemon.config import Config
from daemon.parser import parse

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
NAMES = [page.name for page in PAGES]

# A sentence may name a command without what the command needs.
_ABBREVIATED = re.compile(r"arguments are required|expected one argument")
# Stands in a quoted line for something that differs each time.
_NAMES = r"\b(?:NAME|UID|PATH|DAY|KIND|SUBJECT|SEG|pacs|[MNRX]|\w+Error)\b"
_DIFFERS = re.compile(rf"\.\.\.|\{{\.\.\.\}}|{_NAMES}|'[^']*'|\d[\d./:]*x?|[;:,] ")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_command_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, is_sentence in _commands(page.read_text()):
        try:
            parse(command)
        except SystemExit as ended:
            said = capsys.readouterr().err
            is_fine = ended.code == 0 or (is_sentence and _ABBREVIATED.search(said))
            assert is_fine, f"pleura {shlex.join(command)}: {said}"


def _commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words after `pleura` of each command, and whether it stands in a sentence."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"[ \t]+# .*", "", text))
    # A quoted word may go on in the next line.
    for line in re.findall(r"(?m)^ {4,}(?:\S*/bin/|\$ )?pleura ([a-z-](?:'[^']*'|[^'\n])*)$", text):
        yield _words(line), "..." in line

    sentences = re.sub(r"\s*\n\s*", " ", re.sub(r"(?s)```.*?```", "", text))
    for quoted in re.findall(r"(?<!`)`(?:\.venv/bin/)?pleura ([a-z-][^`]*)`", sentences):
        yield _words(quoted), True


def _words(command: str) -> list[str]:
    """The words of a command up to a pipe or a redirection."""
    command = re.split(r"  \[\d\]|\s*\\?\|\s|;|&&| \d?> | 2>", command)[0]
    command = command.replace("FILE|DIR", "FILE").replace("--since TIME", "--since 2026-11-30")
    command = re.sub(r"\[(FILE[^]]*|-\S+ \S+)\]", "", command)
    return [word for word in shlex.split(command) if word != "..."]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_setting_exists(page: Path) -> None:
    reference = (REPOSITORY / "docs" / "configuration.md").read_text()
    known = {key.replace("[]", "") for key in re.findall(r"(?m)^#+ `(.+)`$", reference)}
    groups = {key.rpartition(".")[0] for key in known} - {""}

    for quoted in re.findall(r"`([a-z_]+(?:\[\w*\])?(?:\.[a-z_]+)+)`", page.read_text()):
        key = re.sub(r"\[\w*\]", "", quoted)
        if key.rpartition(".")[0] in groups and not key.endswith((".py", ".yml")):
            assert key in known, quoted


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_example_of_settings_is_accepted(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "pleura.yaml"
    for example in _settings(page.read_text()):
        path.write_text(example)
        config.load(path)


def _settings(text: str) -> Iterator[str]:
    """The blocks that hold settings. A block with "..." leaves something to the reader."""
    blocks = re.findall(r"(?s)```yaml\n(.*?)```", text)
    blocks += map(textwrap.dedent, re.findall(r"(?m)(?:^ {4}.*\n(?:\n(?= {4}))?)+", text))
    for block in blocks:
        try:
            found = yaml.safe_load(block)
        except yaml.YAMLError:
            continue
        is_settings = isinstance(found, dict) and found.keys() <= Config.model_fields.keys()
        if is_settings and "..." not in block:
            yield block


def test_each_line_of_the_runbook_can_be_logged() -> None:
    # A line may end with the operating system's words.
    texts = "\n".join([*_texts_of_the_code(), *map(os.strerror, errno.errorcode)])
    rows = re.findall(r"(?m)^\| (``?.+?``?) \| .* \|$", (REPOSITORY / "docs/faults.md").read_text())
    assert len(rows) > 50

    for row in rows:
        for line in re.findall(r"(?:`` ?(.+?) ?``)|`([^`]+)`", row.split(" | ")[0]):
            quoted = line[0] or line[1]
            for part in filter(None, map(_words_of, _DIFFERS.split(quoted))):
                pieces = list(_pieces(part, texts))
                assert "" not in pieces, f"{quoted}: {pieces}"
                # Single words are found anywhere.
                assert len(pieces) < max(len(part), 2), f"{quoted}: {pieces}"


def _texts_of_the_code() -> Iterator[str]:
    """Each text of the code but its docstrings: its blanks as one, without what is put into it."""
    for folder in ("daemon", "inference"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            docstrings = {id(each.value) for each in nodes if isinstance(each, ast.Expr)}
            for node in nodes:
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                constants = [each.value for each in parts if isinstance(each, ast.Constant)]
                if id(node) not in docstrings:
                    yield re.sub(r"\s+", " ", "\0".join(map(str, constants)))


def _words_of(part: str) -> list[str]:
    return [word for word in part.split() if re.search(r"\w", word)]


def _pieces(words: list[str], texts: str) -> Iterator[str]:
    """The words cut into the longest pieces that texts of the code have; "" where none has.

    The code puts a line together from several texts.
    """
    while words:
        length = len(words)
        while length and " ".join(words[:length]) not in texts:
            length -= 1
        yield " ".join(words[:length])
        words = words[max(length, 1) :]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_module_exists_with_its_options(page: Path) -> None:
    text = re.sub(r"\s*\\?\n\s*", " ", page.read_text())
    modules = "benchmarks|daemon|tests|tools|training"
    for name, rest in re.findall(rf"python -m ((?:{modules})[\w.]*)([^`#]*)", text):
        file = REPOSITORY / Path(*name.split(".")).with_suffix(".py")
        folder = file.parent if file.exists() else file.with_suffix("")
        assert file.exists() or (folder / "__main__.py").exists(), name

        sources = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
        command = re.split(r" (?:python|pleura) |  |[|;&]", rest)[0]
        for option in re.findall(r"(?<= )--[a-z][\w-]*", command):
            assert f'"{option}"' in sources, f"python -m {name} {option}"
