"""The text of `--help`, read from the sources it tells of, without running them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from marl.command.compose import CONFIGS, Registries, files
from marl.config import Settings
from marl.fields import key_of, shown

EXAMPLES = """\
  {command} algo=fox env=grf
  {command} algo=qmix env=grf env.scenario=academy_corner steps=20000 rollout.backend=ray
  {command} algo=random_attack algo.base=fox algo.base.beta1=0.02 env=grf
  {command} -m algo=qmix,vdn env=meet seed=0,1,2
  {command} algo=qplex recipe=tuned env=meet
  {command} experiment=fox_3v1 learner.batch=16
  {command} resume=runs/fox_grf_s0 steps=4000000
  {command} from=runs/fox_grf_s0 seed=1"""
OPTIONS = """\
  -h, --help        this text; after algo=NAME and env=NAME with their settings, too
  -m, --multirun    one run for each combination of values: seed=0,1,2 or seed=range(0,10)
  --cfg, --config   print the whole configuration and stop"""
NO_DEFAULT = "?"


class Setting(NamedTuple):
    """One line of the list."""

    key: str
    kind: str
    default: str
    comment: str


def guide(command: str, purpose: str, registries: Registries, chosen: dict[str, type]) -> str:
    """Everything there is to say; ``chosen`` are the `Config` classes of what is chosen, by the key before them."""
    parts = [
        purpose.strip(),
        f"usage: {command} algo=NAME env=NAME [key=value ...] [-m] [--cfg] [--help]",
        _section("options", OPTIONS),
        _section("algorithms (algo=NAME)", _listed(_first_lines(registries.algorithms))),
        _section("environments (env=NAME)", _listed(_first_lines(registries.environments))),
        _section("ways to train (recipe=NAME)", _headlines("recipe")),
        _section("published settings (experiment=NAME)", _headlines("experiment")),
        _section(
            "settings, with their defaults before the files in configs/ have their say", _table(settings(Settings))
        ),
    ]
    for key, config in chosen.items():
        parts.append(_section(f"settings of {key}", _table(settings(config, f"{key}."))))
    parts.append(_section("examples", EXAMPLES.format(command=command)))
    return "\n\n".join(parts)


def _section(title: str, text: str) -> str:
    return f"{title}:\n{text}"


def _listed(lines: dict[str, str]) -> str:
    width = max(map(len, lines), default=0)
    return "\n".join(f"  {name:<{width}}  {line}" for name, line in sorted(lines.items()))


def _first_lines(registry: Any) -> dict[str, str]:
    return {name: headline(path) for name, path in registry.items()}


def headline(module: str) -> str:
    """The first line of a module's docstring; the module is not run."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is registered and not there", name=module)
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (doc or "").partition("\n")[0]


def _headlines(group: str) -> str:
    """What the files of a folder of configs/ say they are."""
    return _listed({name: _headline(group, name) for name in files(group)})


def _headline(group: str, name: str) -> str:
    """The first comment of a file that says what it is."""
    text = resources.files(CONFIGS).joinpath(group, f"{name}.yaml").read_text(encoding="utf-8")
    comments = (line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@")), "")


def _table(entries: Iterator[Setting]) -> str:
    rows = list(entries)
    left = [f"{row.key}={row.default}" for row in rows]
    keys, kinds = max(map(len, left)), max(min(len(row.kind), 18) for row in rows)
    return "\n".join(f"  {start:<{keys}}  {row.kind:<{kinds}}  {row.comment}" for start, row in zip(left, rows))


def settings(config: type, prefix: str = "") -> Iterator[Setting]:
    """What a dataclass and those below it let a user set."""
    told = _comments(config)
    for entry in dataclasses.fields(config):
        default = _default(entry)
        if dataclasses.is_dataclass(default):
            yield from settings(type(default), f"{prefix}{key_of(entry)}.")
        else:
            kind = "|".join(entry.metadata["allowed"]) if "allowed" in entry.metadata else _kind(entry.type)
            yield Setting(prefix + key_of(entry), kind, shown(default), told.get(entry.name, ""))


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return NO_DEFAULT if entry.default is dataclasses.MISSING else entry.default


def _kind(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("builtins.", "").replace(" | None", "|null").replace("Any", "NAME")


def _comments(config: type) -> dict[str, str]:
    """Field name to the comment on its line."""
    told: dict[str, str] = {}
    for layer in reversed(config.__mro__):
        if not dataclasses.is_dataclass(layer):
            continue
        source = textwrap.dedent(inspect.getsource(layer))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in by_line:
                told[node.target.id] = by_line[node.end_lineno]
    return told
