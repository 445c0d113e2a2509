"""All that a training run and its verification are asked for, as frozen dataclasses.

What a recipe's sections hold, with units, ranges and defaults; `recipe` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from robust_export.errors import InvalidValue

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
MethodName = Literal["pgd-at", "trades", "mart", "fast", "standard"]
SingleStep = Literal["n-fgsm", "rs-fgsm"]
SpartaForm = Literal["relu", "silu"]
Sharing = Literal["width", "site"]
AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
Number = Annotated[float, BeforeValidator(fraction)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fractional = Annotated[Number, Field(ge=0, lt=1)]
Proportion = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

Precision = Literal["fp32", "fp16", "bf16", "int8"]

BETA: Mapping[str, float] = {"trades": 6.0, "mart": 5.0}  # as their authors set them

MAX_LOGIT_DIFFERENCE: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15, "int8": 0.25}
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

    share: Sharing = "width"
    kernel_size: Literal[1, 3, 5, 7] = 3
    lr_multiple: NonNegative = 5.0  # of the network's learning rate
    load: str = ""  # a sparta.safetensors, or the bundle that has one, to start from
    freeze: bool = False
    form: SpartaForm = "relu"  # "silu" is x * sigmoid(w (*) x + b), for research: it cannot be exported
    gate: Literal["full", "bias", "random"] = "full"  # controls: no weights; what is loaded, at random places

    def __post_init__(self) -> None:
        if self.gate == "random" and not self.load:
            raise ValueError(
                'gate is "random", which puts a loaded function\'s values at random places: give load'
            )


@dataclass(frozen=True, config=STRICT)
class Data:
    """The data set and what is done to its training images."""

    name: str = "digits"  # digits, cifar10, cifar100, svhn or folder:PATH
    dir: str = "data"  # where torchvision's data sets lie
    val_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1  # split off train, for early stopping
    shift: Natural = 0  # random translation of at most so many pixels, zero-padded
    flip: bool = False  # random horizontal flips
    randaugment: Natural = 0  # RandAugment's operations on each image; 0: none
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    cutmix: NonNegative = 0.0  # alpha of CutMix's Beta(alpha, alpha); 0: none
    extra: str = ""  # folder:PATH of more training images, of the same classes
    extra_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.5  # their part of every batch
    workers: Natural = 0  # processes that decode images


@dataclass(frozen=True, config=STRICT)
class Attack:
    """Projected gradient descent as training uses it; steps = 0 trains without attacks."""

    steps: Natural = 10
    step_size: Positive = 0.25  # of eps
    random_start: bool = True
    single_step: SingleStep = "n-fgsm"  # of method "fast", which takes neither steps nor step_size
    val_steps: Count = 10  # of the attack that early stopping watches


@dataclass(frozen=True, config=STRICT)
class Train:
    """The optimisation."""

    method: MethodName = "pgd-at"
    beta: NonNegative | None = None  # weight of the robust term; None: 6 of TRADES, 5 of MART
    awp: NonNegative = 0.0  # gamma of adversarial weight perturbation, in norms of each weight; 0: none
    awp_start: Natural = 0  # epochs before it
    epochs: Count = 30
    batch_size: Count = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd is with Nesterov momentum
    lr: Positive = 0.1  # the schedule's peak
    momentum: Fractional = 0.9
    weight_decay: NonNegative = 5e-4  # not on norms, biases or Sparta
    schedule: Literal["one-cycle", "cosine", "steps"] = "one-cycle"
    warmup: Fractional = 0.25  # of one-cycle: the part of the run in which the rate rises
    label_smoothing: Fractional = 0.0
    clip_grad: NonNegative = 0.0  # largest gradient norm; 0 does not clip
    ema: Fractional = 0.99  # decay of the averaged weights per step; 0 keeps the last weights
    patience: Natural = 0  # epochs without a better robust validation accuracy; 0 never stops
    amp: Literal["off", "bf16", "fp16"] = "off"  # autocast; fp16 with a scaled loss
    channels_last: bool = True
    fused: bool = False  # Sparta by the fused kernel, on CPUs; the same up to rounding
    fold_norms: bool = False  # attacks run with batch norm folded into the convolutions
    compile: bool = False  # attacks run through torch.compile
    grad_checkpointing: bool = False  # compute planes again in the backward pass, instead of keeping them
    sync_batchnorm: bool = False  # of several processes, on GPUs: statistics of the whole batch
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    checkpoint_every: Natural = 1000  # steps between checkpoints within an epoch; 0: after epochs only
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.beta is not None and self.method not in BETA:
            raise ValueError(f'beta is {self.beta:g}, and method "{self.method}" has none: leave it out')


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
    max_gap: Annotated[Mapping[Precision, Positive], per_precision(MAX_LOGIT_DIFFERENCE)] = field(
        default_factory=lambda: dict(MAX_LOGIT_DIFFERENCE)
    )  # largest logit difference, in units of the source's logit scale
    min_agreement: Annotated[Mapping[Precision, Proportion], per_precision(MIN_AGREEMENT)] = field(
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

    def __post_init__(self) -> None:
        method = self.train.method
        if method == "mart" and self.data.cutmix:
            raise InvalidValue(
                f'data.cutmix is {self.data.cutmix:g} with train.method "mart", whose images have one class '
                "each: leave out one of them"
            )
        if method in BETA and not self.attack.steps:
            raise InvalidValue(
                f'attack.steps is 0 with train.method "{method}", which needs an attack; give steps, or '
                'method "standard"'
            )

    @property
    def adversarial(self) -> bool:
        """Whether training is against attacks."""
        method = self.train.method
        return method == "fast" or (method != "standard" and self.attack.steps > 0)


SECTIONS: dict[str, Any] = {
    "model": Model, "sparta": SpartaOptions, "data": Data, "threat": Threat,
    "attack": Attack, "train": Train, "verify": Verify,
}  # fmt: skip
