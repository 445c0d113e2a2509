"""What a comparison trains: arms, each a recipe but for its seed, and the runs that they take gates from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robust_export.errors import InvalidValue, unknown
from robust_export.recipe.recipe_file import Tables, default_recipe, load_recipe, merge, parse
from robust_export.recipe.schema import SECTIONS, Recipe

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sparta-k1": ("sparta", {"kernel_size": 1}),
    "sparta-k5": ("sparta", {"kernel_size": 5}),
    "sparta-site": ("sparta", {"share": "site"}),
    "sparta-bias": ("sparta", {"gate": "bias"}),
    "sparta-silu": ("sparta", {"form": "silu"}),
}
"""Short names of an activation with options of [sparta]."""

CONTROLS = {"": "full", ", random gate": "random", ", bias only": "bias"}  # of a transfer
PLAN_KEYS = ("backbone", "dataset", "seeds", "epochs", "rates", "arms")
PLACE_KEYS = ("backbone", "dataset")


@dataclass(frozen=True)
class Place:
    """A backbone on a data set, with what a recipe says there: tables of recipe sections."""

    backbone: str
    dataset: str
    tables: Tables = field(default_factory=dict)

    def recipe(self, activation: str, *layers: Tables) -> Recipe:
        """Return the recipe of a network there: the data set's defaults, then the layers, then its own."""
        name = {"model": {"name": f"{self.backbone}_{activation}"}, "data": {"name": self.dataset}}
        tables = merge(default_recipe(self.dataset), *layers, self.tables, name)
        return parse(tables, f"{self.backbone}_{activation} on {self.dataset}")


@dataclass(frozen=True)
class Arm:
    """One way to train that is compared with others.

    Attributes:
        source: where its Sparta function is learnt first, with the same seed; None: it starts afresh.
    """

    name: str
    activation: str
    place: Place
    source: Place | None = None


@dataclass(frozen=True)
class Plan:
    """A comparison: its arms, the first of which the others are compared with.

    Attributes:
        seeds: every arm is trained with the seeds 0 to seeds - 1.
        layer: what all recipes share, over the data sets' defaults.
        rates: multiples of train.lr to choose from for each arm, by robust validation accuracy with a seed
            that is not compared; one: no choice.
    """

    arms: tuple[Arm, ...]
    seeds: int = 5
    layer: Tables = field(default_factory=dict)
    rates: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        names = [slug(arm.name) for arm in self.arms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidValue(f"two arms are called {twice[0]!r}; give each a name of its own")
        if len(self.arms) < 2:
            raise InvalidValue(f"there is {len(self.arms)} arm; a comparison needs two or more")
        if self.seeds < 2:
            raise InvalidValue(
                f"seeds is {self.seeds}; a comparison over seeds needs two or more, better five"
            )
        if not self.rates or min(self.rates) <= 0:
            raise InvalidValue(f"rates is {list(self.rates)}; expected multiples of train.lr above 0")

    def recipe(self, arm: Arm, seed: int, load: Path | None = None, rate: float = 1.0) -> Recipe:
        """Return an arm's recipe with this seed, its Sparta function from the bundle `load`."""
        given: dict[str, dict[str, Any]] = {"sparta": {"load": str(load)}} if load else {}
        whole = arm.place.recipe(arm.activation, self.layer, given)
        return replace(whole, train=replace(whole.train, seed=seed, lr=whole.train.lr * rate))

    def source_recipe(self, arm: Arm, seed: int) -> Recipe:
        """Return the recipe by which an arm's Sparta function is learnt: as full gates, free to learn."""
        assert arm.source is not None
        theirs = dict(arm.place.tables.get("sparta", {})) | {"gate": "full", "freeze": False}
        shared = {"sparta": theirs, "train": {"seed": seed}}
        return arm.source.recipe(arm.activation, self.layer, shared)


def slug(name: str) -> str:
    """Return a name as a folder is called: "sparta k=1" is "sparta-k-1"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def simple_plan(
    backbone: str, activations: Sequence[str], dataset: str, seeds: int, layer: Tables,
    transfers: Sequence[str] = (), rates: Sequence[float] = (1.0,),
) -> Plan:  # fmt: skip
    """Return the plan of `compare`'s options.

    Args:
        activations: of models' names, or `VARIANTS`.
        transfers: BACKBONE, BACKBONE:DATASET or :DATASET; each adds three arms with frozen gates that were
            learnt there: the function itself, its values at random places, and its biases alone.
    """
    arms = []
    for name in activations:
        activation, options = VARIANTS.get(name, (name, {}))
        arms.append(Arm(name, activation, Place(backbone, dataset, {"sparta": options} if options else {})))
    for text in transfers:
        theirs, _, data = text.partition(":")
        source = Place(theirs or backbone, data or dataset)
        for suffix, gate in CONTROLS.items():
            place = Place(backbone, dataset, {"sparta": {"gate": gate, "freeze": True}})
            arms.append(Arm(f"sparta from {text.strip(':')}{suffix}", "sparta", place, source))
    return Plan(tuple(arms), seeds, layer, tuple(rates))


def load_plan(path: Path, seeds: int | None = None, layer: Tables | None = None) -> Plan:
    """Read a plan from a TOML file; `seeds` and `layer` go before what it says.

    Raises:
        UnknownName: for a key that is none, naming the nearest.
        InvalidValue: if a key is missing or of another type.
    """
    table = load_recipe(path)
    own, sections = _split(table, PLAN_KEYS, str(path))
    arms = own.get("arms")
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise InvalidValue(f"{path}: arms is {arms!r}; expected [[arms]], each with a name and an activation")
    epochs = {"train": {"epochs": own["epochs"]}} if "epochs" in own else {}
    rates = own.get("rates", [1.0])
    count = own.get("seeds", 5) if seeds is None else seeds
    numbers = isinstance(rates, list) and all(isinstance(rate, int | float) for rate in rates)
    if not isinstance(count, int) or not numbers:
        raise InvalidValue(
            f"{path}: seeds is {count!r} and rates {rates!r}; expected a number and a list of numbers"
        )
    return Plan(
        tuple(_arm(arm, own, f"{path}: [[arms]]") for arm in arms), count,
        merge(sections, epochs, layer or {}), tuple(float(rate) for rate in rates),
    )  # fmt: skip


def _arm(table: Mapping[str, Any], plan: Mapping[str, Any], where: str) -> Arm:
    own, sections = _split(table, ("name", "activation", "from", *PLACE_KEYS), where)
    name = own.get("name") or own.get("activation")
    if not isinstance(name, str):
        raise InvalidValue(f"{where}: an arm has neither name nor activation: {dict(table)!r}")
    activation, options = VARIANTS.get(
        str(own.get("activation", name)), (str(own.get("activation", name)), {})
    )
    tables = merge({"sparta": options} if options else {}, sections)
    place = _place(own, plan, tables, where)
    if "from" not in own:
        return Arm(name, activation, place)
    if not isinstance(own["from"], dict):
        raise InvalidValue(f"{where}: from is {own['from']!r}; expected a table with backbone or dataset")
    theirs, their_sections = _split(own["from"], PLACE_KEYS, f"{where}: from")
    here = {"backbone": place.backbone, "dataset": place.dataset}
    return Arm(name, activation, place, _place(theirs, here, their_sections, f"{where}: from"))


def _place(own: Mapping[str, Any], plan: Mapping[str, Any], tables: Tables, where: str) -> Place:
    given = {key: own.get(key, plan.get(key, "")) for key in PLACE_KEYS}
    for key, value in given.items():
        if not isinstance(value, str) or not value:
            raise InvalidValue(f"{where}: {key} is {value!r}; give one, for the plan or for the arm")
    return Place(given["backbone"], given["dataset"], tables)


def _split(
    table: Mapping[str, Any], keys: Sequence[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a table's own keys, and the sections of a recipe in it."""
    for key in table:
        if key not in keys and key not in SECTIONS:
            raise unknown(f"key in {where}", key, [*keys, *SECTIONS])
    own = {key: value for key, value in table.items() if key in keys}
    return own, {key: value for key, value in table.items() if key in SECTIONS}
