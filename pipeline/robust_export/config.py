"""A recipe: all that a training run and its verification were asked for, as frozen dataclasses.

A recipe is a small TOML file with the sections below. Keys that it does not give keep the default
of the data set (recipes/<data set>.toml), then the default here. Unknown keys are refused, except
in [model], where they are timm keyword arguments.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from robust_export.errors import InvalidValue, unknown

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def fraction(value: Any) -> Any:
    """Return the float that "8/255" or "0.1" stands for; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    try:
        over, *under = str(value).split("/")
        return float(over) / float(*under) if under else float(over)
    except (ValueError, TypeError, ZeroDivisionError):
        raise ValueError(f'{value!r} is not a number; write 0.031 or "8/255"') from None


Norm = Literal["Linf", "L2"]
AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
Number = Annotated[float, BeforeValidator(fraction)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fractional = Annotated[Number, Field(ge=0, lt=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

Precision = Literal["fp32", "fp16", "bf16", "int8"]

MAX_GAP: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15, "int8": 0.25}
MIN_AGREEMENT: Mapping[Precision, float] = {"fp32": 1.0, "fp16": 0.98, "bf16": 0.95, "int8": 0.95}
MAX_FLIP_MARGIN: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15, "int8": 0.5}


def per_precision(defaults: Mapping[Precision, float]) -> Any:
    """Return the type of a gate: one number for every precision, or a table for some of them."""

    def complete(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {**defaults, **value}
        return dict.fromkeys(defaults, value)

    return BeforeValidator(complete)


MAX_EPS = {"Linf": 1.0, "L2": 1e3}  # an Linf ball of radius 1 holds every image there is


@dataclass(frozen=True, config=STRICT)
class Threat:
    """The budget of an attack: ||x' - x||_norm <= eps, x and x' pixels in [0, 1]."""

    norm: Norm = "Linf"
    eps: NonNegative = 8 / 255

    def __post_init__(self) -> None:
        if self.eps > MAX_EPS[self.norm]:
            raise ValueError(
                f"eps is {self.eps:g}, but pixels lie in [0, 1]: give at most "
                f'{MAX_EPS[self.norm]:g} for {self.norm} (8/255 is written "8/255")'
            )


@dataclass(frozen=True, config=STRICT)
class Model:
    """The network: what `create_model` takes, and what its weights start from."""

    name: str = "resnet18_sparta"
    image_size: Annotated[int, Field(ge=4, le=4096)] = 32
    in_chans: Annotated[int, Field(ge=1, le=64)] = 3
    init: str = "random"  # "random", "pretrained" (timm's weights) or a .safetensors file
    options: Mapping[str, Any] = field(default_factory=dict)  # timm keyword arguments


@dataclass(frozen=True, config=STRICT)
class SpartaOptions:
    """The learnt activation: who shares a gate, how far it looks, how fast it learns."""

    share: Literal["width", "site"] = "width"
    kernel_size: Literal[1, 3, 5, 7] = 3
    lr_multiple: NonNegative = 5.0  # of the network's learning rate
    load: str = ""  # a sparta.safetensors to start from
    freeze: bool = False


@dataclass(frozen=True, config=STRICT)
class Data:
    """The data set and what is done to its training images."""

    name: str = "digits"  # digits, cifar10, cifar100, svhn or folder:PATH
    dir: str = "data"  # where torchvision's data sets lie
    val_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1  # split off train, for early stopping
    shift: Natural = 0  # random translation of at most so many pixels, zero-padded
    flip: bool = False  # random horizontal flips
    workers: Natural = 0  # processes that decode images


@dataclass(frozen=True, config=STRICT)
class Attack:
    """Projected gradient descent as training uses it; steps = 0 trains without attacks."""

    steps: Natural = 10
    step_size: Positive = 0.25  # of eps
    random_start: bool = True
    val_steps: Count = 10  # of the attack that early stopping watches


@dataclass(frozen=True, config=STRICT)
class Train:
    """The optimisation."""

    epochs: Count = 30
    batch_size: Count = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd is with Nesterov momentum
    lr: Positive = 0.1  # the schedule's peak
    momentum: Fractional = 0.9
    weight_decay: NonNegative = 5e-4  # not on norms, biases or Sparta
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    warmup: Fractional = 0.25  # of one-cycle: the part of the run in which the rate rises
    label_smoothing: Fractional = 0.0
    clip_grad: NonNegative = 0.0  # largest gradient norm; 0 does not clip
    ema: Fractional = 0.99  # decay of the averaged weights per step; 0 keeps the last weights
    patience: Natural = 0  # epochs without a better robust validation accuracy; 0 never stops
    amp: Literal["off", "bf16"] = "off"  # bfloat16 autocast, for GPUs that have it
    channels_last: bool = True
    seed: Natural = 0


@dataclass(frozen=True, config=STRICT)
class Verify:
    """The attacks' budgets, and the gates that an artifact must pass.

    A gate that depends on the precision is a number for all of them, or a table such as {fp16 = 0.02}.
    """

    attacks: Annotated[tuple[AttackName, ...], Field(min_length=1)] = (
        "apgd-ce", "apgd-t", "fab-t", "square",
    )  # fmt: skip
    iterations: Count = 100  # of each gradient attack
    targets: Count = 9  # target classes of the targeted attacks (at most classes - 1)
    queries: Count = 5000  # of Square
    batch_size: Count = 256
    samples: Natural = 0  # images of the test split; 0 takes all
    seed: Natural = 0
    ascent: Natural = 50  # steps of the black-box search for the largest logit gap
    max_drop: Fractional = 0.02  # of accuracy, clean and robust, from source to artifact
    max_clean_drop: Fractional | None = None  # of clean accuracy; None: max_drop
    max_gap: Annotated[Mapping[Precision, Positive], per_precision(MAX_GAP)] = field(
        default_factory=lambda: dict(MAX_GAP)
    )  # largest logit difference, in units of the source's logit scale
    min_agreement: Annotated[Mapping[Precision, Share], per_precision(MIN_AGREEMENT)] = field(
        default_factory=lambda: dict(MIN_AGREEMENT)
    )  # of top-1 decisions
    max_flip_margin: Annotated[Mapping[Precision, Positive], per_precision(MAX_FLIP_MARGIN)] = field(
        default_factory=lambda: dict(MAX_FLIP_MARGIN)
    )  # largest margin of the source at which a decision flips, in units of its median margin


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything `train` and `verify` need to know; training again from it gives the same weights."""

    model: Model = field(default_factory=Model)
    sparta: SpartaOptions = field(default_factory=SpartaOptions)
    data: Data = field(default_factory=Data)
    threat: Threat = field(default_factory=Threat)
    attack: Attack = field(default_factory=Attack)
    train: Train = field(default_factory=Train)
    verify: Verify = field(default_factory=Verify)


SECTIONS: dict[str, Any] = {
    "model": Model, "sparta": SpartaOptions, "data": Data, "threat": Threat,
    "attack": Attack, "train": Train, "verify": Verify,
}  # fmt: skip

Tables = Mapping[str, Mapping[str, Any]]
T = TypeVar("T")


def parse(tables: Tables, source: str = "recipe") -> Recipe:
    """Return the recipe that the tables of a TOML document describe.

    Raises:
        UnknownName: for an unknown section or key, naming the nearest known one.
        InvalidValue: for a value of the wrong type or out of range, naming the key.
    """
    sections = {}
    for section, table in tables.items():
        if section not in SECTIONS:
            raise unknown(f"section in {source}", section, SECTIONS)
        if not isinstance(table, Mapping):
            raise InvalidValue(f"{source}: {section} is {table!r}; expected a section [{section}]")
        sections[section] = build(SECTIONS[section], table, f"{source}: [{section}]")
    return Recipe(**sections)


def build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Return the dataclass `kind` from a table, or raise an error that names the key."""
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
        raise InvalidValue(f"{where}: {_explain(error)}") from None


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        InvalidValue: if the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InvalidValue(f"recipe {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, not TOML, or an integer of thousands of digits
        raise InvalidValue(f"recipe {path} is not a TOML file: {error}") from None


def default_recipe(data_set: str) -> dict[str, Any]:
    """Return the tables of a data set's own recipe (or of "demo")."""
    file = resources.files("robust_export") / "recipes" / f"{data_set.partition(':')[0]}.toml"
    return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}


def merge(*layers: Tables) -> dict[str, dict[str, Any]]:
    """Return the layers' tables laid over each other, later ones on top."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, table in layer.items():
            below = merged.setdefault(section, {})
            if isinstance(below, dict) and isinstance(table, Mapping):
                below.update(table)
            elif isinstance(below, dict):
                merged[section] = table  # stays, whatever lies on top: parse refuses and names it
    return merged


def tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the recipe as plain tables, timm's keyword arguments laid flat in [model]."""
    result = asdict(recipe)
    result["model"].update(result["model"].pop("options"))
    return {section: _lists(table) for section, table in result.items()}


def to_toml(recipe: Recipe) -> str:
    """Return the complete recipe as TOML; `parse` of it gives an equal recipe."""
    return tomli_w.dumps(tables(recipe))


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Return a line for every key in which two recipes differ, "train.lr: 0.1, 0.2"."""
    a, b = tables(one), tables(other)
    return [
        f"{section}.{key}: {a[section].get(key)!r}, {b[section].get(key)!r}"
        for section in a
        for key in a[section] | b[section]
        if a[section].get(key) != b[section].get(key)
    ]


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists of settings into the tuples that frozen dataclasses hold (timm's stay lists)."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _lists(table: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in table.items() if value is not None}  # TOML has no null
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def _explain(error: ValidationError) -> str:
    """Return the first problem as "key is 'x': Input should be ..."."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}"
