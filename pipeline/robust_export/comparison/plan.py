"""Plan of a comparison: the arms, each a recipe without a seed, and the sources of their Sparta functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robust_export.errors import InvalidValue, unknown
from robust_export.recipe.recipe_file import Tables, default_recipe, load_recipe, merge, parse
from robust_export.recipe.schema import SECTIONS, Recipe

ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sparta-k1": ("sparta", {"kernel_size": 1}),
    "sparta-k5": ("sparta", {"kernel_size": 5}),
    "sparta-site": ("sparta", {"share": "site"}),
    "sparta-bias": ("sparta", {"gate": "bias"}),
    "sparta-silu": ("sparta", {"form": "silu"}),
}
"""Names of activations with options of [sparta]."""

TRANSFER_ARMS = {"": "full", ", random gate": "random", ", bias only": "bias"}
"""The arms of a transfer and its two controls: suffix of the name, and [sparta] gate."""

PLAN_KEYS = ("backbone", "dataset", "seeds", "epochs", "rates", "arms")
BASE_KEYS = ("backbone", "dataset")


@dataclass(frozen=True)
class BaseRecipe:
    """Backbone, data set, and tables of a recipe that differ from the defaults."""

    backbone: str
    dataset: str
    tables: Tables = field(default_factory=dict)

    def recipe(self, activation: str, *layers: Tables) -> Recipe:
        """Return the recipe for an activation: the data set's defaults, then `layers`, then `tables`."""
        name = {"model": {"name": f"{self.backbone}_{activation}"}, "data": {"name": self.dataset}}
        tables = merge(default_recipe(self.dataset), *layers, self.tables, name)
        return parse(tables, f"{self.backbone}_{activation} on {self.dataset}")


@dataclass(frozen=True)
class Arm:
    """One of the recipes that are compared.

    Attributes:
        source: the network that its Sparta function is learnt in first, with the same seed; None: the
            function is learnt by the arm itself.
    """

    name: str
    activation: str
    base: BaseRecipe
    source: BaseRecipe | None = None


@dataclass(frozen=True)
class Plan:
    """The arms of a comparison. The others are compared with the first.

    Attributes:
        seeds: every arm is trained with the seeds 0 to seeds - 1.
        layer: tables that override the data sets' defaults in all recipes.
        rates: multiples of train.lr. Each arm uses the one with the best robust validation accuracy, measured
            with a seed that is not compared. A single rate is used as it is.
    """

    arms: tuple[Arm, ...]
    seeds: int = 5
    layer: Tables = field(default_factory=dict)
    rates: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        names = [slug(arm.name) for arm in self.arms]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidValue(f"two arms are named {duplicates[0]!r}; give each its own name")
        if len(self.arms) < 2:
            raise InvalidValue(f"the plan has {len(self.arms)} arm; a comparison needs two or more")
        if self.seeds < 2:
            raise InvalidValue(f"seeds is {self.seeds}; a comparison needs two or more, five are recommended")
        if not self.rates or min(self.rates) <= 0:
            raise InvalidValue(f"rates is {list(self.rates)}; expected multiples of train.lr above 0")

    def recipe(self, arm: Arm, seed: int, load: Path | None = None, rate: float = 1.0) -> Recipe:
        """Return an arm's recipe with this seed, whose Sparta function is loaded from the bundle `load`."""
        sparta: dict[str, dict[str, Any]] = {"sparta": {"load": str(load)}} if load else {}
        recipe = arm.base.recipe(arm.activation, self.layer, sparta)
        return replace(recipe, train=replace(recipe.train, seed=seed, lr=recipe.train.lr * rate))

    def source_recipe(self, arm: Arm, seed: int) -> Recipe:
        """Return the recipe of the arm's source, with full gates that are trained."""
        assert arm.source is not None
        sparta = dict(arm.base.tables.get("sparta", {})) | {"gate": "full", "freeze": False}
        return arm.source.recipe(arm.activation, self.layer, {"sparta": sparta, "train": {"seed": seed}})


def slug(name: str) -> str:
    """Return a folder name for an arm: "sparta-k-1" for "sparta k=1"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def plan_from_options(
    backbone: str, activations: Sequence[str], dataset: str, seeds: int, layer: Tables,
    transfers: Sequence[str] = (), rates: Sequence[float] = (1.0,),
) -> Plan:  # fmt: skip
    """Return the plan of the options of `compare`.

    Args:
        activations: as in model names, or of ACTIVATIONS.
        transfers: BACKBONE, BACKBONE:DATASET or :DATASET. Each adds three arms with a frozen Sparta function
            that is learnt there: the function itself, its values permuted at random, and its biases alone.
    """
    arms = []
    for name in activations:
        activation, options = ACTIVATIONS.get(name, (name, {}))
        base = BaseRecipe(backbone, dataset, {"sparta": options} if options else {})
        arms.append(Arm(name, activation, base))
    for text in transfers:
        source_backbone, _, source_dataset = text.partition(":")
        source = BaseRecipe(source_backbone or backbone, source_dataset or dataset)
        for suffix, gate in TRANSFER_ARMS.items():
            base = BaseRecipe(backbone, dataset, {"sparta": {"gate": gate, "freeze": True}})
            arms.append(Arm(f"sparta from {text.strip(':')}{suffix}", "sparta", base, source))
    return Plan(tuple(arms), seeds, layer, tuple(rates))


def load_plan(path: Path, seeds: int | None = None, layer: Tables | None = None) -> Plan:
    """Read a plan from a TOML file; `seeds` and `layer` override it.

    Raises:
        UnknownName: for an unknown key, naming the nearest known one.
        InvalidValue: if a key is missing or has the wrong type.
    """
    table = load_recipe(path)
    own, sections = _split(table, PLAN_KEYS, str(path))
    arms = own.get("arms")
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise InvalidValue(f"{path}: arms is {arms!r}; expected [[arms]], each with a name and an activation")
    epochs = {"train": {"epochs": own["epochs"]}} if "epochs" in own else {}
    rates = own.get("rates", [1.0])
    count = own.get("seeds", 5) if seeds is None else seeds
    valid_rates = isinstance(rates, list) and all(isinstance(rate, int | float) for rate in rates)
    if not isinstance(count, int) or not valid_rates:
        raise InvalidValue(
            f"{path}: seeds is {count!r} and rates {rates!r}; expected an integer and a list of numbers"
        )
    return Plan(
        tuple(_arm(arm, own, f"{path}: [[arms]]") for arm in arms), count,
        merge(sections, epochs, layer or {}), tuple(float(rate) for rate in rates),
    )  # fmt: skip


def _arm(table: Mapping[str, Any], plan: Mapping[str, Any], where: str) -> Arm:
    own, sections = _split(table, ("name", "activation", "from", *BASE_KEYS), where)
    name = own.get("name") or own.get("activation")
    if not isinstance(name, str):
        raise InvalidValue(f"{where}: an arm needs a name or an activation; got {dict(table)!r}")
    activation, options = ACTIVATIONS.get(
        str(own.get("activation", name)), (str(own.get("activation", name)), {})
    )
    tables = merge({"sparta": options} if options else {}, sections)
    base = _base(own, plan, tables, where)
    if "from" not in own:
        return Arm(name, activation, base)
    if not isinstance(own["from"], dict):
        raise InvalidValue(f"{where}: from is {own['from']!r}; expected a table with backbone or dataset")
    source, source_tables = _split(own["from"], BASE_KEYS, f"{where}: from")
    defaults = {"backbone": base.backbone, "dataset": base.dataset}
    return Arm(name, activation, base, _base(source, defaults, source_tables, f"{where}: from"))


def _base(own: Mapping[str, Any], defaults: Mapping[str, Any], tables: Tables, where: str) -> BaseRecipe:
    values = {key: own.get(key, defaults.get(key, "")) for key in BASE_KEYS}
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise InvalidValue(f"{where}: {key} is {value!r}; set it for the plan or for the arm")
    return BaseRecipe(values["backbone"], values["dataset"], tables)


def _split(
    table: Mapping[str, Any], keys: Sequence[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a table into the keys of `keys` and sections of a recipe; raise UnknownName for others."""
    for key in table:
        if key not in keys and key not in SECTIONS:
            raise unknown(f"key in {where}", key, [*keys, *SECTIONS])
    own = {key: value for key, value in table.items() if key in keys}
    return own, {key: value for key, value in table.items() if key in SECTIONS}
