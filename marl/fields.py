"""What a setting allows, and how a mistake is told: in one line, with the key, the value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any


class Mistake(ValueError):
    """What the user asked for cannot be. The message is one line: the key, the value and what is allowed."""


@contextmanager
def of_base() -> Iterator[None]:
    """What is refused inside is a setting of ``algo.base``, which that algorithm knows as one of ``algo``."""
    try:
        yield
    except Mistake as mistake:
        raise Mistake(str(mistake).replace("algo.", "algo.base.")) from mistake


def suggestion(word: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest of ``names``, whatever its case, or nothing."""
    called = {name.lower(): name for name in names}
    nearest = get_close_matches(word.lower(), list(called), n=1)
    return f"; did you mean {called[nearest[0]]}?" if nearest else ""


def one_of(default: str | None, *others: str) -> Any:
    """A field that takes one of these words; one that may be null is null by default."""
    words = others if default is None else (default, *others)
    return field(default=default, metadata={"allowed": words})


def number(default: float | None, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Any:
    """A field that takes finite numbers from ``least``, or beyond ``above``, up to ``most``."""
    return field(default=default, metadata={"least": least, "above": above, "most": most})


def count(default: int | None, least: int = 1) -> Any:
    """A field that takes whole numbers from ``least`` on."""
    return number(default, least=least)


def like(default: str | None, pattern: str, allowed: str) -> Any:
    """A field that takes text of a form; ``allowed`` says which."""
    return field(default=default, metadata={"pattern": pattern, "words": allowed})


def only_with(entry: Any, **siblings: Any) -> Any:
    """``entry``, of which nothing depends unless each of ``siblings`` has that value, or one of that tuple."""
    needed = {name: value if isinstance(value, tuple) else (value,) for name, value in siblings.items()}
    return field(default=entry.default, metadata={**entry.metadata, "needed": needed})


def idle_with(entry: Any, **siblings: Any) -> Any:
    """``entry``, of which nothing depends if one of ``siblings`` has that value."""
    return field(default=entry.default, metadata={**entry.metadata, "idle": siblings})


def shown(value: object) -> str:
    """A value as one types it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def one_line(said: object) -> str:
    """``said`` without its line breaks."""
    return " ".join(str(said).split())


def first_line(said: object) -> str:
    """The first line of ``said``."""
    return str(said).strip().partition("\n")[0]


def key_of(entry: Field[Any]) -> str:
    """A field's key on the command line: Python's reserved words have an underscore that users do not type."""
    return entry.name.rstrip("_")


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Dotted key, value and field of everything that is set in a dataclass and those below it."""
    for entry in fields(config):
        key, value = prefix + key_of(entry), vars(config)[entry.name]
        if is_dataclass(value):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, list) and value and all(map(is_dataclass, value)):
            for index, item in enumerate(value):
                yield from leaves(item, f"{key}.{index}.")
        else:
            yield key, value, entry


def check_values(config: Any, prefix: str = "") -> None:
    """Refuse values that the fields of a dataclass, and of those below it, do not allow; ``prefix`` begins its keys.

    Raises:
        Mistake: such a value.
    """
    for key, value, entry in leaves(config, prefix):
        if value is not None:
            check_value(key, value, entry)


def check_value(key: str, value: Any, entry: Field[Any]) -> None:
    """Refuse a value that a field does not allow.

    Raises:
        Mistake: it does not.
    """
    rule = entry.metadata
    if "allowed" in rule and value not in rule["allowed"]:
        allowed = ", ".join(rule["allowed"])
        raise Mistake(f"{key}={value}: allowed are {allowed}{suggestion(str(value), rule['allowed'])}")
    if "pattern" in rule and not re.fullmatch(rule["pattern"], value, re.ASCII):
        raise Mistake(f"{key}={value}: allowed are {rule['words']}")
    if "least" in rule and not (
        math.isfinite(value) and rule["least"] <= value <= rule["most"] and value > rule["above"]
    ):
        raise Mistake(f"{key}={value}: allowed are {_range(rule['least'], rule['above'], rule['most'])}")


def refuse_idle(config: Any, typed: Collection[str], prefix: str = "") -> None:
    """Refuse ``typed`` keys on whose value nothing depends, as `only_with` and `idle_with` say.

    Raises:
        Mistake: such a key.
    """
    for entry in fields(config):
        key, value = prefix + key_of(entry), vars(config)[entry.name]
        if is_dataclass(value):
            refuse_idle(value, typed, f"{key}.")
        elif key in typed:
            for sibling, needed in entry.metadata.get("needed", {}).items():
                _refuse_unless(vars(config)[sibling], needed, f"{prefix}{sibling}", f"{key}={shown(value)}")
            for sibling, idle in entry.metadata.get("idle", {}).items():
                if vars(config)[sibling] == idle:
                    raise Mistake(f"{key}={shown(value)}: {prefix}{sibling}={shown(idle)} has no use for it")


def _refuse_unless(now: object, needed: Sequence[object], sibling: str, typed: str) -> None:
    if now not in needed:
        allowed = " or ".join(f"{sibling}={shown(other)}" for other in needed)
        raise Mistake(f"{typed}: {sibling}={shown(now)} has no use for it; say {allowed} too")


def _range(least: float, above: float, most: float) -> str:
    if least == above == -math.inf:
        return f"numbers up to {most:g}"
    begin = f"numbers above {above:g}" if above > -math.inf else f"{least:g}"
    return f"{begin} to {most:g}" if most < math.inf else begin if above > -math.inf else f"{begin} and more"
