"""Read YAML as people write it: 1e-3 is a number, `on` as a key is a word, and a key that occurs twice is an error."""

import re
from typing import Any

import yaml

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT, _BOOL, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "merge"))


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A key occurs twice in one mapping, of which YAML would take the last."""


class Loader(_Base):  # type: ignore[misc]
    """Reads plain values. YAML 1.1 takes 1e-3 for a string, and the keys on, off, yes and no for true and false."""

    def get_single_node(self) -> Any:
        """The document as a tree of nodes. Raises DuplicateKeyError."""
        node = super().get_single_node()
        _mend_keys(node, set())
        return node


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _mend_keys(node: Any, seen: set[int]) -> None:
    if id(node) in seen:  # an anchor may stand within itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _mend_keys(item, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, Any], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                _mend_key(key, lines)
            _mend_keys(value, seen)


def _mend_key(key: yaml.ScalarNode, lines: dict[tuple[str, Any], int]) -> None:
    if key.tag == _BOOL and key.value.lower() not in {"true", "false"}:
        key.tag = _TEXT
    same, line = (key.tag, key.value), key.start_mark.line + 1
    if same in lines and key.tag != _MERGE:
        raise DuplicateKeyError(None, None, f"the key {key.value!r} is there twice, first in line {lines[same]}", key.start_mark)
    lines.setdefault(same, line)
