"""A settings file as YAML 1.2 keys and values, unchecked.

PyYAML reads YAML 1.1, in which 0104 is 68 (octal), 1:44 is 104 (base 60), and NO, on and y are
booleans. Here only plain decimal numbers, true, false and null are special (YAML 1.2, core schema);
everything else is text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


def parse(text: str) -> Any:
    """The document of one YAML text.

    Raises:
        yaml.YAMLError: not YAML, a key that is not text or is given twice, or a value that its tag
            does not allow.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would silently take the later value."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here the keys are still as written: later, `<<` is replaced by the keys that it stands
        # for.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, "found a list or {...} in place of a key; a template not filled?")
            if key.tag not in (_TEXT, _MERGE):
                raise _error(key, f"the key {key.value!r} is not text; put it in quotes")
            if key.value in seen:
                raise _error(key, f"the key {key.value!r} is given twice; keep one of them")
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ARG002
        try:
            # Deep: so an alias inside its own anchor is an error, not an endless value.
            return super().construct_object(node, deep=True)
        except (ValueError, LookupError, AttributeError) as error:
            # `!!int abc`, `!!bool maybe`, `!!timestamp now`, or a number of thousands of digits.
            kind = node.tag.rpartition(":")[2]
            raise _error(node, f"the value cannot be read as {kind}") from error


def _error(node: yaml.Node, words: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, words, node.start_mark)


_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z")

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])
