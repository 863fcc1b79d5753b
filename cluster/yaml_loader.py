"""YAML loader for configuration files: 1e-3 is a number, `on` is a string as a key, a duplicate key is an error."""

import re
from typing import Any

import yaml

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT, _BOOL, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "merge"))


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A key occurs twice in one mapping; YAML itself would silently use the last value."""


class Loader(_Base):  # type: ignore[misc]
    """Safe loader that corrects YAML 1.1, which reads 1e-3 as a string and the keys on, off, yes and no as booleans."""

    def get_single_node(self) -> Any:
        """Return the document as a tree of nodes. Raises DuplicateKeyError."""
        node = super().get_single_node()
        _correct_keys(node, set())
        return node


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _correct_keys(node: Any, visited: set[int]) -> None:
    if id(node) in visited:  # an alias may refer to a node that contains it
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _correct_keys(item, visited)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, Any], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                _correct_key(key, lines)
            _correct_keys(value, visited)


def _correct_key(key: yaml.ScalarNode, lines: dict[tuple[str, Any], int]) -> None:
    if key.tag == _BOOL and key.value.lower() not in {"true", "false"}:
        key.tag = _TEXT
    identity, line = (key.tag, key.value), key.start_mark.line + 1
    if identity in lines and key.tag != _MERGE:
        message = f"duplicate key {key.value!r}, first used in line {lines[identity]}"
        raise DuplicateKeyError(None, None, message, key.start_mark)
    lines.setdefault(identity, line)
