"""Risk: the architecture erodes. Every import is parsed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = [
    {"marl.types", "marl.fields", "marl.recurrent", "marl.heap", "marl.descent", "marl.precision", "marl.sections"},
    {"marl.ops", "marl.stacked", "marl.nets", "marl.mixers", "marl.duplex", "marl.attention", "marl.dice", "marl.env"},
    {"marl.parts", "marl.config", "marl.parallel", "marl.scaling"},
    {"algos", "envs"},
    {"marl.replay", "marl.worker", "marl.checkpoint", "marl.reporting", "marl.crews.ledger"},
    {"marl.learner", "marl.reporting.tally", "marl.crews", "marl.fleet"},
    {"marl.schedule", "marl.command", "marl.reproduction"},
    {
        "marl.build",
        "marl.run",
        "marl.train",
        "marl.training",
        "marl.evaluate",
        "marl.bench",
        "marl.costs",
        "marl.plot",
        "marl.reproduce",
    }
    | {"marl.rates", "marl.reproduction.chance"},
]
"""A package stands for all its files but those that are named."""
COMMANDS = LEVELS[-1]
FILES = [path for top in ("marl", "algos", "envs") for path in sorted((ROOT / top).rglob("*.py"))]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level(name: str) -> int | None:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for number, names in enumerate(LEVELS):
            if ".".join(parts[:end]) in names:
                return number
    return None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    own = level(name)
    if name == "marl":
        assert not {i for i in imports(path) if i.startswith(("marl", "algos", "envs"))}
        return
    assert own is not None, f"{name} has no level: give it one"
    for imported in imports(path):
        above = level(imported)
        if above is not None and name.split(".")[0] == imported.split(".")[0] == "marl":
            assert above <= own, f"{name} (level {own}) imports {imported} (level {above})"
        if imported.split(".")[0] in ("algos", "envs") and name.startswith("marl"):
            assert name in COMMANDS, f"{name} imports {imported}: only commands know the registries"
        if imported.split(".")[0] == "ray":
            assert name == "marl.fleet", f"{name} imports ray: only marl.fleet does"


@pytest.mark.parametrize("path", sorted((ROOT / "algos").glob("*.py")), ids=name_of)
def test_papers_do_not_know_one_another(path):
    papers = {name_of(p) for p in (ROOT / "algos").glob("*.py")} - {"algos", "algos.factored", "algos.formation"}
    assert not (imports(path) & (papers - {name_of(path)}))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
