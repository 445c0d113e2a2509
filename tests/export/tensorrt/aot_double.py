"""A test double of tensorrt.plugin, which PyPI alone cannot install, as far as `export.tensorrt.aot` uses it.

It checks signatures against TensorRT's documentation of register, autotune and aot_impl. Symbolic expressions
are functions of the shape, which TensorRT evaluates when the network runs.
"""

from __future__ import annotations

import enum
import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, get_args, get_origin


class DataType(enum.Enum):
    FLOAT, HALF, BF16 = range(3)


class TensorFormat(enum.Enum):
    LINEAR, HWC8 = range(2)


class SymInt32:
    """An integer that may depend on the shape: a number, or a function of {axis: size}."""

    def __init__(self, value: int | Callable[[dict[str, int]], int] | SymInt32) -> None:
        self.value: Any = value.value if isinstance(value, SymInt32) else value

    def at(self, sizes: dict[str, int]) -> int:
        found = self.value(sizes) if callable(self.value) else self.value
        assert isinstance(found, int)
        return found

    def _with(self, other: int | SymInt32, do: Callable[[int, int], int]) -> SymInt32:
        right = SymInt32(other)
        return SymInt32(lambda sizes: do(self.at(sizes), right.at(sizes)))

    def __mul__(self, other: int | SymInt32) -> SymInt32:
        return self._with(other, lambda a, b: a * b)

    def __floordiv__(self, other: int | SymInt32) -> SymInt32:
        return self._with(other, lambda a, b: a // b)


def cdiv(first: SymInt32, second: int | SymInt32) -> SymInt32:
    return first._with(second, lambda a, b: -(-a // b))


class SymIntExprs(list[SymInt32]):
    @classmethod
    def from_tuple(cls, values: Iterable[SymInt32]) -> SymIntExprs:
        return cls(values)


@dataclass
class KernelLaunchParams:
    grid_x: Any = 1
    grid_y: Any = 1
    grid_z: Any = 1
    block_x: Any = 1
    block_y: Any = 1
    block_z: Any = 1
    shared_mem: Any = 0


@dataclass
class TensorDesc:
    """`shape` is -1 where `shape_expr` depends on the input."""

    shape: tuple[int, ...]
    dtype: DataType
    format: TensorFormat = TensorFormat.LINEAR
    shape_expr: list[SymInt32] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self.shape_expr = [
            SymInt32(size if size >= 0 else operator.itemgetter(str(i))) for i, size in enumerate(self.shape)
        ]

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape, self.dtype, self.format)


@dataclass
class AutoTuneCombination:
    io_types: str
    layouts: str


class Plugins(ModuleType):
    """The module, with the registered callbacks."""

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.registered: dict[str, dict[str, Callable[..., Any]]] = {}
        for item in (SymInt32, SymIntExprs, KernelLaunchParams, TensorDesc, AutoTuneCombination, cdiv):
            setattr(self, item.__name__, item)

    def register(self, plugin_id: str) -> Callable[..., Any]:
        namespace, name = plugin_id.split("::")
        assert namespace not in ("", "trt", "tensorrt", "std")
        assert "." not in plugin_id

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            assert plugin_id not in self.registered, f"{name} is registered twice"
            signature = inspect.signature(function)
            for parameter in signature.parameters.values():
                assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                assert parameter.annotation is TensorDesc
                assert parameter.default is parameter.empty
            assert signature.return_annotation is TensorDesc
            self.registered[plugin_id] = {"register": function}
            return function

        return decorate

    def autotune(self, plugin_id: str) -> Callable[..., Any]:
        return self._second(plugin_id, "autotune", ["outputs"])

    def aot_impl(self, plugin_id: str) -> Callable[..., Any]:
        return self._second(plugin_id, "aot_impl", ["outputs", "tactic"])

    def _second(self, plugin_id: str, kind: str, more: list[str]) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            first = inspect.signature(self.registered[plugin_id]["register"])
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*first.parameters, *more]
            outputs = signature.parameters["outputs"].annotation
            assert get_origin(outputs) is tuple
            assert get_args(outputs) == (TensorDesc,)
            returns = signature.return_annotation
            if kind == "aot_impl":
                assert signature.parameters["tactic"].annotation is int
                assert get_origin(returns) is tuple
                assert get_args(returns) == (str, bytes, KernelLaunchParams, SymIntExprs)
            else:
                assert get_origin(returns) is list
                assert get_args(returns) == (AutoTuneCombination,)
            self.registered[plugin_id][kind] = function
            return function

        return decorate
