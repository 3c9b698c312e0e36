"""Trees of settings that know their types: a dotted key finds its place, a value its type, a slip its neighbour."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from marl.fields import Mistake, first_line, shown, suggestion

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


def tree(config: type) -> DictConfig:
    """A dataclass and those below it, at their defaults, ready to be filled."""
    node: DictConfig = OmegaConf.structured(config)
    _thaw(node)
    return node


def _thaw(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = OmegaConf.select(node, str(key))
        if isinstance(child, DictConfig):
            _thaw(child)


def fill(root: DictConfig, values: Mapping[str, Any]) -> None:
    """Set what a nested mapping says.

    Raises:
        Mistake: no such key, or a value of another type.
    """
    for key, value in values.items():
        put(root, str(key), value)


def put(root: DictConfig, key: str, value: Any) -> None:
    """Set one dotted key; a mapping sets several.

    Raises:
        Mistake: no such key, or a value of another type.
    """
    _put(root, root, key, key, value)


def _put(root: DictConfig, node: DictConfig, key: str, whole: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if head not in node.keys() or head.endswith("_"):  # what has no default yet is a key, and yet not "in"
        raise _no_such_key(root, node, whole.removesuffix(f".{rest}") if rest else whole, whole, value)
    child = OmegaConf.select(node, head)
    if _is_group(child):
        if rest:
            return _put(root, child, rest, whole, value)
        if not isinstance(value, Mapping):
            allowed = ", ".join(f"{whole}.{name}" for name in child)
            raise Mistake(f"{whole}={shown(value)}: a group of settings; allowed are {allowed}")
        for inner, item in value.items():
            _put(root, child, str(inner), f"{whole}.{inner}", item)
        return None
    if rest and not isinstance(child, DictConfig):
        raise Mistake(f"{whole}={shown(value)}: no such setting; {whole.removesuffix(f'.{rest}')} holds a single value")
    for part in reversed(rest.split(".") if rest else []):
        value = {part: value}
    return _assign(node, head, whole, value)


def _is_group(node: Any) -> bool:
    return isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node))


def _assign(node: DictConfig, head: str, whole: str, value: Any) -> None:
    config = OmegaConf.get_type(node)
    assert config is not None
    hint = get_type_hints(config)[head]
    if int in (hint, *get_args(hint)) and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        node.merge_with({head: value})
    except OmegaConfBaseException as error:
        fault = "" if hint in WORDS else f" ({first_line(error)})"
        raise Mistake(f"{whole}={shown(value)}: allowed is {wording(hint)}{fault}") from error


def wording(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is list and is_dataclass(get_args(hint)[0]):
        return f"a list of mappings with {', '.join(entry.name for entry in fields(get_args(hint)[0]))}"
    parts = get_args(hint) if type(None) in get_args(hint) else (hint,)
    return " or ".join(WORDS[part] if part in WORDS else inspect.formatannotation(part) for part in parts)


def _no_such_key(root: DictConfig, node: DictConfig, wrong: str, whole: str, value: Any) -> Mistake:
    above, _, word = wrong.rpartition(".")
    prefix = f"{above}." if above else ""
    names = sorted(str(name).rstrip("_") for name in node)
    near = suggestion(wrong, [prefix + name for name in names]) if get_close_matches(word, names, n=1) else ""
    hint = near or _elsewhere(root, word)
    return Mistake(f"{whole}={shown(value)}: no such setting; allowed are {', '.join(names)}{hint}")


def _elsewhere(root: DictConfig, word: str) -> str:
    """A suggestion from the whole tree, by the last part of the key."""
    last = {key: key.rpartition(".")[2] for key in _keys(root)}
    near = get_close_matches(word, last.values(), n=1, cutoff=0.8)
    found = [key for key in last if last[key] in near]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, node):
        child = OmegaConf.select(node, name)
        if isinstance(child, DictConfig) and _is_group(child):
            yield from _keys(child, f"{prefix}{name}.")
        elif not name.endswith("_"):
            yield prefix + name
