"""The sections of a recipe as frozen dataclasses, with units, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from robust_export.errors import InvalidValue

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def fraction(value: Any) -> Any:
    """Return "8/255", "0.1" or an integer as a float; return other types unchanged."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    try:
        numerator, *denominator = str(value).split("/")
        return float(numerator) / float(*denominator) if denominator else float(numerator)
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

BETA: Mapping[str, float] = {"trades": 6.0, "mart": 5.0}  # as in their papers

# Default limits of [verify] for each precision, see `Verify`.
MAX_LOGIT_DIFFERENCE: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15, "int8": 0.25}
MIN_AGREEMENT: Mapping[Precision, float] = {"fp32": 1.0, "fp16": 0.98, "bf16": 0.95, "int8": 0.95}
MAX_FLIP_MARGIN: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15, "int8": 0.5}


def per_precision(defaults: Mapping[Precision, float]) -> Any:
    """Return the validator of a limit: a number for all precisions, or a table that completes `defaults`."""

    def complete(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {**defaults, **value}
        return dict.fromkeys(defaults, value)

    return BeforeValidator(complete)


MAX_EPS = {"Linf": 1.0, "L2": 1e3}  # an Linf ball of radius 1 contains all images


@dataclass(frozen=True, config=STRICT)
class Threat:
    """The perturbations an attack may use: ||x' - x||_norm <= eps, with pixels x and x' in [0, 1]."""

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
    """Arguments of `create_model`, and the initial weights."""

    name: str = "resnet18_sparta"
    image_size: Annotated[int, Field(ge=4, le=4096)] = 32
    in_chans: Annotated[int, Field(ge=1, le=64)] = 3
    init: str = "random"  # "random", "pretrained" (timm's weights) or a .safetensors file
    options: Mapping[str, Any] = field(default_factory=dict)  # timm keyword arguments


@dataclass(frozen=True, config=STRICT)
class SpartaOptions:
    """The Sparta function: sharing, kernel size, learning rate and initial values."""

    share: Sharing = "width"  # one gate per width, or one per site
    kernel_size: Literal[1, 3, 5, 7] = 3  # side of the gate's kernel
    lr_multiple: NonNegative = 5.0  # of the network's learning rate
    load: str = ""  # initial values: a sparta.safetensors or a bundle that has one
    freeze: bool = False  # do not train it
    form: SpartaForm = "relu"  # "silu": x * sigmoid(w (*) x + b), for research, not exportable
    gate: Literal["full", "bias", "random"] = "full"  # controls: weights 0; loaded values permuted

    def __post_init__(self) -> None:
        if self.gate == "random" and not self.load:
            raise ValueError(
                'gate is "random", which permutes a loaded function\'s values: give load as well'
            )


@dataclass(frozen=True, config=STRICT)
class Data:
    """The data set and the augmentation of its training images."""

    name: str = "digits"  # digits, cifar10, cifar100, svhn or folder:PATH
    dir: str = "data"  # folder of torchvision's data sets
    val_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1  # of the training images, for validation
    shift: Natural = 0  # largest random translation in pixels, zero-padded
    flip: bool = False  # random horizontal flips
    randaugment: Natural = 0  # number of RandAugment operations per image
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    cutmix: NonNegative = 0.0  # alpha of CutMix's Beta(alpha, alpha); 0 is off
    extra: str = ""  # folder:PATH with further training images of the same classes
    extra_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.5  # proportion of extra images in a batch
    workers: Natural = 0  # processes that decode images


@dataclass(frozen=True, config=STRICT)
class Attack:
    """The attack of adversarial training, projected gradient descent; steps = 0 trains without attack."""

    steps: Natural = 10
    step_size: Positive = 0.25  # in units of eps
    random_start: bool = True
    single_step: SingleStep = "n-fgsm"  # for method "fast", which ignores steps and step_size
    val_steps: Count = 10  # steps of the attack on validation images


@dataclass(frozen=True, config=STRICT)
class Train:
    """Method, optimiser and schedule of training."""

    method: MethodName = "pgd-at"
    beta: NonNegative | None = None  # weight of the robust term; None: 6 for TRADES, 5 for MART
    awp: NonNegative = 0.0  # gamma of adversarial weight perturbation, in norms of each weight; 0 is off
    awp_start: Natural = 0  # epochs without it at the start
    epochs: Count = 30
    batch_size: Count = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd has Nesterov momentum
    lr: Positive = 0.1  # maximum of the schedule
    momentum: Fractional = 0.9
    weight_decay: NonNegative = 5e-4  # not for normalisation layers, biases and Sparta
    schedule: Literal["one-cycle", "cosine", "steps"] = "one-cycle"
    warmup: Fractional = 0.25  # for one-cycle: proportion of the run with rising rate
    label_smoothing: Fractional = 0.0
    clip_grad: NonNegative = 0.0  # maximum gradient norm; 0 is off
    ema: Fractional = 0.99  # decay per step of the averaged weights; 0 is off
    patience: Natural = 0  # stop after so many epochs without a better robust validation accuracy; 0 is off
    amp: Literal["off", "bf16", "fp16"] = "off"  # autocast; fp16 with loss scaling
    channels_last: bool = True
    fused: bool = False  # use the fused Sparta kernel on CPUs; equal up to rounding
    fold_norms: bool = False  # attack a copy with batch norm folded into the convolutions
    compile: bool = False  # use torch.compile for attacks
    grad_checkpointing: bool = False  # recompute feature maps in the backward pass
    sync_batchnorm: bool = False  # on several GPUs: statistics of the whole batch
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    checkpoint_every: Natural = 1000  # steps between checkpoints within an epoch; 0 is off
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.beta is not None and self.method not in BETA:
            raise ValueError(f'beta is {self.beta:g}, but method "{self.method}" has no beta: leave it out')


@dataclass(frozen=True, config=STRICT)
class Verify:
    """Budgets of the attacks, and limits of the acceptance criteria.

    A limit by precision is a number for all precisions, or a table such as {fp16 = 0.02}.
    """

    attacks: Annotated[tuple[AttackName, ...], Field(min_length=1)] = (
        "apgd-ce", "apgd-t", "fab-t", "square",
    )  # fmt: skip
    iterations: Count = 100  # of each gradient attack
    targets: Count = 9  # of the targeted attacks, at most classes - 1
    queries: Count = 5000  # of Square
    batch_size: Count = 256
    samples: Natural = 0  # images of the test split; 0 is all
    seed: Natural = 0
    ascent: Natural = 50  # steps of the black-box search for the largest logit difference
    max_drop: Fractional = 0.02  # of clean and robust accuracy, from reference model to artifact
    max_clean_drop: Fractional | None = None  # for clean accuracy; None: max_drop
    max_gap: Annotated[Mapping[Precision, Positive], per_precision(MAX_LOGIT_DIFFERENCE)] = field(
        default_factory=lambda: dict(MAX_LOGIT_DIFFERENCE)
    )  # max abs difference of logits, in units of the reference model's logit scale
    min_agreement: Annotated[Mapping[Precision, Proportion], per_precision(MIN_AGREEMENT)] = field(
        default_factory=lambda: dict(MIN_AGREEMENT)
    )  # top-1 agreement
    max_flip_margin: Annotated[Mapping[Precision, Positive], per_precision(MAX_FLIP_MARGIN)] = field(
        default_factory=lambda: dict(MAX_FLIP_MARGIN)
    )  # reference model's largest margin at which top-1 flips, in units of its median margin


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """All settings of `train` and `verify`; training from it again gives the same weights."""

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
                f'data.cutmix is {self.data.cutmix:g} with train.method "mart", which needs one class '
                "per image: leave out one of them"
            )
        if method in BETA and not self.attack.steps:
            raise InvalidValue(
                f'attack.steps is 0 with train.method "{method}", which needs an attack; give steps, or '
                'method "standard"'
            )

    @property
    def adversarial(self) -> bool:
        """Whether training uses adversarial examples."""
        method = self.train.method
        return method == "fast" or (method != "standard" and self.attack.steps > 0)


SECTIONS: dict[str, Any] = {
    "model": Model, "sparta": SpartaOptions, "data": Data, "threat": Threat,
    "attack": Attack, "train": Train, "verify": Verify,
}  # fmt: skip
