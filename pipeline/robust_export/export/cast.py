"""Casts a float32 graph to half precision: all of it but the normalisation in front and the logits.

Which operators take half precision is read from ONNX's own schemas at the model's opset. What they do not
admit (the scales of Resize, the limits of Range) stays float32, with a Cast at every border.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from robust_export.errors import UnsupportedModel
from robust_export.export.half import FLOAT, HALVES, Half, cast, constants_to_initialisers
from robust_export.export.op_schemas import formats

NORMALISATION = frozenset({"Sub", "Div", "Mul", "Add"})  # with constants: what may stand before a network


def cast_model(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return the model with its weights and arithmetic in half precision.

    Inputs, outputs and the normalisation of the pixels stay float32: half precision cannot hold the
    difference between neighbouring 8-bit pixels everywhere, and an attack's epsilon would be rounded.

    Args:
        model: a float32 model without subgraphs, such as `to_onnx` makes.
        precision: "fp16" or "bf16".

    Raises:
        UnsupportedModel: if a weight is too large for the format, or a node holds a graph of its own.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants_to_initialisers(result.graph)
    graph = _Lowering(result, HALVES[precision]).run()
    result.graph.CopyFrom(graph)
    return result


def normalisation(graph: onnx.GraphProto) -> set[str]:
    """Return the outputs of the nodes that only shift and scale the graph's input by constants."""
    constants = {i.name for i in graph.initializer}
    front = {i.name for i in graph.input}
    found: set[str] = set()
    for node in graph.node:
        fed = [name for name in node.input if name not in constants]
        if node.op_type in NORMALISATION and len(fed) == 1 and fed[0] in front:
            found.add(node.output[0])
            front.add(node.output[0])
    return found


class _Lowering:
    """Rewrites a graph whose float32 values each get a wide name, a half one, or both."""

    def __init__(self, model: onnx.ModelProto, half: Half) -> None:
        self.half = half
        self.old, self.new = model.graph, onnx.GraphProto(name=model.graph.name)
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.infos = {v.name: v for v in (*inferred.value_info, *inferred.input, *inferred.output)}
        self.floats = {n for n, v in self.infos.items() if v.type.tensor_type.elem_type == FLOAT}
        self.floats |= {i.name for i in self.old.initializer if i.data_type == FLOAT}
        self.outputs = {o.name for o in self.old.output}
        self.taken = {*self.infos, *(i.name for i in self.old.initializer)}
        self.taken |= {name for node in self.old.node for name in node.output}
        self.names: dict[tuple[str, bool], str] = {}  # (value, half) to its name
        self.names |= {(str(i.name), False): str(i.name) for i in self.old.input}

    def run(self) -> onnx.GraphProto:
        front = normalisation(self.old)
        plans = []
        for node in self.old.node:
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise UnsupportedModel(
                    f"{node.op_type} {node.name} holds a graph of its own, which cannot be cast to "
                    f"{self.half.name}; export with --precision fp32 or int8"
                )
            if node.output[0] in front:
                plans.append(([False] * len(node.input), [False]))
            else:
                plans.append(formats(node, self.opsets, self.floats, self.half.schema))
        self._name_initialisers(plans)
        for node, (takes, gives) in zip(self.old.node, plans, strict=True):
            inputs = [self._read(name, half) for name, half in zip(node.input, takes, strict=True)]
            outputs = [self._write(name, half) for name, half in zip(node.output, gives, strict=True)]
            rewritten = self.new.node.add()
            rewritten.CopyFrom(node)
            rewritten.input[:], rewritten.output[:] = inputs, outputs
        for output in self.old.output:
            self._read(output.name, half=False)
        self.new.input.extend(self.old.input)
        self.new.output.extend(self.old.output)
        self.new.initializer.extend(self._initialisers())
        self.new.value_info.extend(self._value_infos())
        return self.new

    def _name_initialisers(self, plans: list[tuple[list[bool], list[bool]]]) -> None:
        """Give an initialiser two names where one reader wants float32 and another one half."""
        wide = {
            name
            for node, (takes, _) in zip(self.old.node, plans, strict=True)
            for name, half in zip(node.input, takes, strict=True)
            if not half
        }
        for tensor in self.old.initializer:
            if tensor.data_type == FLOAT:
                self.names[tensor.name, False] = tensor.name
                both = tensor.name in wide
                self.names[tensor.name, True] = self._fresh(tensor.name, True) if both else tensor.name

    def _fresh(self, name: str, half: bool) -> str:
        """Return a name that nothing has yet."""
        ending = self.half.name if half else "fp32"
        count = 0
        while (fresh := f"{name}_{ending}" + (f"_{count}" if count else "")) in self.taken:
            count += 1
        self.taken.add(fresh)
        return fresh

    def _read(self, name: str, half: bool) -> str:
        """Return the name of a value in a format, after a Cast where it is of the other one."""
        if name not in self.floats:
            return name
        if (name, half) not in self.names:
            other = self.names[name, not half]
            own = name if name in self.outputs and not half else self._fresh(name, half)
            to = self.half.element if half else FLOAT
            self.new.node.append(helper.make_node("Cast", [other], [own], f"cast_{own}", to=to))
            self.names[name, half] = own
        return self.names[name, half]

    def _write(self, name: str, half: bool) -> str:
        """Return the name that a node's output gets; that of the graph's output is the float32 value's."""
        if name in self.floats:
            own = self._fresh(name, half) if half and name in self.outputs else name
            self.names[name, half] = own
            return own
        return name

    def _initialisers(self) -> Iterator[onnx.TensorProto]:
        used = {name for node in self.new.node for name in node.input}
        for tensor in self.old.initializer:
            if tensor.data_type != FLOAT:
                yield tensor
                continue
            wide, half = self.names[tensor.name, False], self.names[tensor.name, True]
            if wide in used and wide != half:
                yield tensor
            if half in used:
                yield cast(tensor, half, self.half)

    def _value_infos(self) -> Iterator[onnx.ValueInfoProto]:
        initialisers = {tensor.name for tensor in self.old.initializer}
        made = {name for node in self.new.node for name in node.output} - self.outputs
        for name, info in self.infos.items():
            for half in (False, True) if name in self.floats and name not in initialisers else ():
                own = self.names.get((name, half), "")
                if own in made:
                    typed = onnx.ValueInfoProto()
                    typed.CopyFrom(info)
                    typed.name = own
                    typed.type.tensor_type.elem_type = self.half.element if half else FLOAT
                    yield typed
            if name not in self.floats and name in made:
                yield info
