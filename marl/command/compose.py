"""From YAML and `key=value` arguments to `Settings`, by Hydra's composition and grammar.

Later wins: dataclass defaults; configs/algo (a wrapped algorithm's file before its wrapper's); configs/recipe, for the
innermost algorithm; configs/env; configs/experiment; the command line. A saved run stands in the place of all files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module, resources
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from marl.command.typed import fill, put, tree
from marl.config import Settings, default_name
from marl.fields import Mistake, first_line, one_line, suggestion

CONFIGS = "configs"
CHOSEN = {"algo": "algorithm", "env": "environment", "recipe": "recipe", "experiment": "experiment"}
"""Keys that choose a file of the folder they are called by."""
Plain = dict[str, Any]
Pair = tuple[str, Any]


@dataclass(frozen=True)
class Registries:
    """Name to module path, for what can be chosen. Only what is chosen is imported."""

    algorithms: Mapping[str, str]
    environments: Mapping[str, str]

    def choose(self, key: str, name: Any) -> str:
        """``name``, if ``key`` may be that.

        Raises:
            Mistake: it may not.
        """
        names, kind = self.names(key), CHOSEN[key.partition(".")[0]]
        if name in names:
            return str(name)
        allowed = ", ".join(names)
        if name is None:
            raise Mistake(f"{key}: no {kind} is chosen; allowed are {allowed}; say {key}=NAME")
        raise Mistake(f"{key}={name}: no such {kind}; allowed are {allowed}{suggestion(str(name), names)}")

    def names(self, key: str) -> list[str]:
        """What ``key`` may be."""
        if key in ("experiment", "recipe"):
            return files(key)
        return sorted(self.environments if key == "env" else self.algorithms)

    def config(self, group: str, name: str) -> type:
        """The `Config` of a registered module."""
        path = (self.environments if group == "env" else self.algorithms)[name]
        found: type | None = vars(import_module(path)).get("Config")
        if not isinstance(found, type) or "__dataclass_fields__" not in vars(found):
            raise Mistake(f"{group}={name}: {path} has no dataclass Config of its own")
        return found

    def wraps(self, algorithm: str) -> bool:
        """Whether it is made of another one."""
        return "base" in {entry.name for entry in fields(self.config("algo", algorithm))}


def files(group: str) -> list[str]:
    """Names of what a folder of configs/ holds: published settings of ``experiment``, ways to train of ``recipe``."""
    found = resources.files(CONFIGS).joinpath(group).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def settings_from(given: Sequence[Pair], registries: Registries, saved: Plain | None = None) -> Settings:
    """What dotted keys and their values ask for, on top of a saved run if there is one. Values are not checked yet.

    Raises:
        Mistake: a key, a type or a choice that is not there.
    """
    choices: dict[str, str] = {}
    values: list[Pair] = []
    for key, value in given:
        if not _chooses(key):
            values.append((key, value))
        elif value is not None:
            choices[key] = registries.choose(key, value)
    plain = _from_files(choices, registries) if saved is None else _from_saved(saved, choices)
    for key in ("algo", "env"):
        plain[key]["name"] = registries.choose(key, plain.setdefault(key, {}).get("name"))
    layers = [*_wrapped(plain["algo"], "algo", choices, registries), plain]
    root = tree(Settings)
    root.env = tree(registries.config("env", plain["env"]["name"]))
    _attach(root, "algo", plain["algo"], "algo", registries)
    for layer in layers:
        _fill_from_file(root, layer, "a file of configs/" if saved is None else "the saved configuration")
    for key, value in values:
        put(root, key, value)
    _refuse_renaming(root, plain, choices)
    return _built(root)


def _fill_from_file(root: DictConfig, layer: Plain, file: str) -> None:
    try:
        fill(root, layer)
    except Mistake as mistake:
        nested = re.match(r"(algo|env)\.\1[.=]", str(mistake))
        hint = "; one that begins with a group has # @package _global_ above it" if nested else ""
        raise Mistake(f"{mistake}; {file} says so{hint}") from mistake


def _chooses(key: str) -> bool:
    return key in CHOSEN or re.fullmatch(r"algo(\.base)+", key) is not None


def _built(root: DictConfig) -> Settings:
    try:
        settings: Any = OmegaConf.to_object(root)
    except MissingMandatoryValue as error:
        raise Mistake(f"{error.full_key}: has no default; say {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise Mistake(f"{error.full_key}: {first_line(error)}") from error
    named: Settings = settings if settings.name else replace(settings, name=default_name(settings))
    return named


# files


def _from_files(choices: Mapping[str, str], registries: Registries) -> Plain:
    """What configs/ says of these choices. A recipe is not for an algorithm that wraps, but for the one within."""
    asked = {key: f"{key}={choices[key]}" for key in CHOSEN if key in choices}
    plain, chosen = _composed("config", [*asked.values()])
    if "recipe" in asked and chosen["algo"] and registries.wraps(registries.choose("algo", chosen["algo"])):
        del asked["recipe"]
        plain, chosen = _composed("config", [*asked.values()])
    for key in ("algo", "env"):
        plain.setdefault(key, {})["name"] = chosen[key]
    return plain


def _from_saved(saved: Plain, choices: Mapping[str, str]) -> Plain:
    """What a saved run says. Where another algorithm or environment is chosen, that section comes from its file."""
    for key in ("experiment", "recipe"):
        if key in choices:
            raise Mistake(f"{key}={choices[key]}: a saved run brings all settings; allowed is one of the two")
    plain: Any = OmegaConf.to_container(OmegaConf.create(saved), resolve=False)
    for key in ("algo", "env"):
        if key in choices and choices[key] != plain[key]["name"]:
            plain[key] = _file(key, choices[key])[key]
    return dict(plain)


def _file(group: str, name: str, recipe: str | None = None) -> Plain:
    """configs/GROUP/NAME.yaml, as it and then a recipe change the settings as a whole."""
    if recipe is None:
        plain = _composed(f"{group}/{name}", [])[0]
    else:
        plain = _composed("config", [f"{group}={name}", f"recipe={recipe}"])[0]
    plain.setdefault(group, {})["name"] = name
    return plain


def _composed(config: str, arguments: Sequence[str]) -> tuple[Plain, Plain]:
    """A file of configs/ as ``arguments`` let Hydra compose it, and what was chosen; the caller may change both."""
    return deepcopy(_composed_once(config, tuple(arguments)))


@cache
def _composed_once(config: str, arguments: tuple[str, ...]) -> tuple[Plain, Plain]:
    try:
        with initialize_config_module(CONFIGS, version_base="1.3"):
            node = compose(config, [*arguments], return_hydra_config=True)
    except MissingConfigException as error:
        raise Mistake(f"{CONFIGS}/{error.missing_cfg_file}.yaml is missing") from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise Mistake(f"{CONFIGS}: {one_line(error)}") from error
    chosen = dict(node.hydra.runtime.choices)
    plain: Any = OmegaConf.to_container(node, resolve=False)
    del plain["hydra"]
    return plain, chosen


# algorithms around algorithms


def _wrapped(section: Plain, key: str, choices: Mapping[str, str], registries: Registries) -> list[Plain]:
    """Put the section of the wrapped algorithm, if any, in the place of its name; the innermost file first."""
    inner = f"{key}.base"
    base = section.get("base")
    given = {"name": None, **base} if isinstance(base, Mapping) else {"name": base}
    if choices.get(inner, given["name"]) != given["name"]:
        given = {"name": choices[inner]}
    if given == {"name": None}:
        return []
    name = registries.choose(inner, given["name"])
    file = _moved(_file("algo", name, None if registries.wraps(name) else choices.get("recipe")), inner)
    section["base"] = OmegaConf.to_container(OmegaConf.merge(file.pop("algo"), given), resolve=False)
    return [*_wrapped(section["base"], inner, choices, registries), file]


def _moved(node: Any, key: str) -> Any:
    """A file's values, whose references to ``algo`` become references to ``key``."""
    if isinstance(node, dict):
        return {name: _moved(value, key) for name, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, key) for value in node]
    return node.replace("${algo.", f"${{{key}.") if isinstance(node, str) else node


def _attach(holder: DictConfig, place: str, section: Plain, key: str, registries: Registries) -> None:
    """Grow the typed tree by an algorithm and those it wraps."""
    holder[place] = tree(registries.config("algo", section["name"]))
    wraps, base = registries.wraps(section["name"]), section.get("base")
    if wraps and base is None:
        registries.choose(f"{key}.base", None)
    if base is not None and not wraps:
        raise Mistake(f"{key}.base={base['name']}: {section['name']} wraps no other algorithm; allowed is none")
    if base is not None:
        _attach(holder[place], "base", base, f"{key}.base", registries)


def _refuse_renaming(root: DictConfig, plain: Plain, choices: Mapping[str, str]) -> None:
    """Names choose code: they change by choice, never as a value."""
    names = {"env": plain["env"]["name"]}
    key, section = "algo", plain["algo"]
    while section is not None:
        names[key] = section["name"]
        key, section = f"{key}.base", section.get("base")
    for key, chosen in names.items():
        now = OmegaConf.select(root, f"{key}.name")
        if now != chosen:
            raise Mistake(f"{key}.name={now}: allowed is {chosen}; another one is chosen by {key}=NAME")
    for key in choices.keys() - names.keys() - {"experiment", "recipe"}:
        raise Mistake(f"{key}={choices[key]}: {key.removesuffix('.base')} wraps no other algorithm; allowed is none")
