"""Read and write recipes: TOML files with the sections of `recipe.schema`.

A missing key has the data set's default (recipe/defaults/<data set>.toml), else that of `recipe.schema`.
Unknown keys are refused, except in [model], where they are timm keyword arguments.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from robust_export.errors import InvalidValue, unknown
from robust_export.recipe.schema import SECTIONS, Model, Recipe

Tables = Mapping[str, Mapping[str, Any]]
T = TypeVar("T")


def parse(tables: Tables, source: str = "recipe") -> Recipe:
    """Return the recipe of a TOML document's tables.

    Args:
        tables: {section: {key: value}}.
        source: name of the document in error messages.

    Raises:
        UnknownName: for an unknown section or key.
        InvalidValue: for a value of the wrong type or out of range.
    """
    sections = {}
    for section, table in tables.items():
        if section not in SECTIONS:
            raise unknown(f"section in {source}", section, SECTIONS)
        if not isinstance(table, Mapping):
            raise InvalidValue(f"{source}: {section} is {table!r}; expected a section [{section}]")
        sections[section] = dataclass_from_table(SECTIONS[section], table, f"{source}: [{section}]")
    return Recipe(**sections)


def dataclass_from_table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Return an instance of the pydantic dataclass `kind` made from a table.

    Args:
        kind: the dataclass; keys that `Model` lacks become its `options`.
        table: {field: value}.
        where: the table's place, for error messages.

    Raises:
        UnknownName: for an unknown key.
        InvalidValue: for a value of the wrong type or out of range; the message names the key.
    """
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    extra = {key: value for key, value in table.items() if key not in known}
    given = {key: value for key, value in table.items() if key in known}
    if kind is Model:
        options = given.get("options", {})
        if not isinstance(options, Mapping) or not options.keys().isdisjoint(known):
            raise InvalidValue(
                f"{where}: options is {options!r}; expected timm's keyword arguments, none of them "
                f"{', '.join(known)}"
            )
        given["options"] = {**options, **extra}
    elif extra:
        raise unknown(f"key in {where}", next(iter(extra)), known)
    try:
        return kind(**_tuples(given))
    except ValidationError as error:
        raise InvalidValue(f"{where}: {_first_problem(error)}") from None


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file, or of a recipe of this package such as "cifar10-trades".

    Raises:
        InvalidValue: if the file cannot be read or is not TOML.
    """
    if not Path(path).suffix and not Path(path).exists() and (packaged := default_recipe(str(path))):
        return packaged
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InvalidValue(f"recipe {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, not TOML, or an integer of thousands of digits
        raise InvalidValue(f"recipe {path} is not a TOML file: {error}") from None


def default_recipe(name: str) -> dict[str, Any]:
    """Return the tables of recipe/defaults/<name>.toml, {} if there is none; "folder:PATH" is "folder"."""
    file = resources.files("robust_export") / "recipe" / "defaults" / f"{name.partition(':')[0]}.toml"
    return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}


def merge(*documents: Tables) -> dict[str, dict[str, Any]]:
    """Return the union of all tables; later ones take precedence."""
    merged: dict[str, dict[str, Any]] = {}
    for document in documents:
        for section, table in document.items():
            below = merged.setdefault(section, {})
            if isinstance(below, dict) and isinstance(table, Mapping):
                below.update(table)
            elif isinstance(below, dict):
                merged[section] = table  # no table: keep it, for `parse` to refuse
    return merged


def to_tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the recipe as {section: {key: value}}, with timm's keyword arguments as keys of "model"."""
    result = asdict(recipe)
    result["model"].update(result["model"].pop("options"))
    return {section: _lists(table) for section, table in result.items()}


def to_toml(recipe: Recipe) -> str:
    """Return the complete recipe as TOML, from which `parse` returns an equal recipe."""
    return tomli_w.dumps(to_tables(recipe))


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Return a line such as "train.lr: 0.1, 0.2" for every key in which two recipes differ."""
    a, b = to_tables(one), to_tables(other)
    return [
        f"{section}.{key}: {a[section].get(key)!r}, {b[section].get(key)!r}"
        for section in a
        for key in a[section] | b[section]
        if a[section].get(key) != b[section].get(key)
    ]


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """Replace lists by tuples, which the frozen dataclasses have (timm's options keep lists)."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _lists(table: Mapping[str, Any]) -> dict[str, Any]:
    present = {key: value for key, value in table.items() if value is not None}  # TOML has no null
    return {key: list(value) if isinstance(value, tuple) else value for key, value in present.items()}


def _first_problem(error: ValidationError) -> str:
    """Return the first problem as "key is 'x'; input should be ..."."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}"
