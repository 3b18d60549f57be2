"""YAML of a user: plain data, without aliases, which can expand without bound, and without repeated keys."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["describe_yaml", "load_yaml", "quote"]


def load_yaml(data: bytes) -> Any:
    """The document in some bytes.

    Raises:
      UnicodeDecodeError: they are not UTF-8 text.
      yaml.YAMLError, ValueError, RecursionError: they are not such YAML.
    """
    return yaml.load(data.decode("utf-8"), Loader=_StrictLoader)


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases and without repeated keys, of which all but the last would be lost."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed here", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key_node.value in keys:
                problem = f"the key {key_node.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            keys.add(key_node.value)
        return super().construct_mapping(node, deep)


def quote(value: Any) -> str:
    """A value of the file for an error, at most 80 characters."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else describe_yaml(value)
    return text if len(text) <= 80 else text[:77] + "…'"


def describe_yaml(value: Any) -> str:
    """The kind of a YAML value for an error, without its contents where they may be long."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return f"the {type(value).__name__} {str(value)[:60]}"
