"""Cast a float32 graph to half precision, except the normalisation of the pixels and the logits.

ONNX's operator schemas at the model's opset say which inputs and outputs may be half precision. The others
(the scales of Resize, the limits of Range) stay float32, with Cast nodes between the two types.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from robust_export.errors import UnsupportedModel
from robust_export.export.half import FLOAT, HALF_TYPES, HalfType, cast_tensor, constants_to_initializers
from robust_export.export.op_schemas import IsHalf, half_inputs_outputs

NORMALISATION_OPERATORS = frozenset({"Sub", "Div", "Mul", "Add"})


def cast_model(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return the model with weights and arithmetic in half precision.

    Inputs, outputs and the normalisation of the pixels stay float32: half precision cannot represent the
    difference between all neighbouring 8-bit pixels, and would round an attack's epsilon.

    Args:
        model: a float32 model without subgraphs, such as `to_onnx` returns.
        precision: "fp16" or "bf16".

    Raises:
        UnsupportedModel: if a weight exceeds the type's range, or a node has a subgraph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants_to_initializers(result.graph)
    result.graph.CopyFrom(_GraphCaster(result, HALF_TYPES[precision]).cast())
    return result


def normalisation_outputs(graph: onnx.GraphProto) -> set[str]:
    """Return the outputs of the nodes that only shift and scale the graph's input by constants."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input}
    outputs: set[str] = set()
    for node in graph.node:
        variables = [name for name in node.input if name not in constants]
        is_affine = node.op_type in NORMALISATION_OPERATORS and len(variables) == 1
        if is_affine and variables[0] in inputs | outputs:
            outputs.add(node.output[0])
    return outputs


class _GraphCaster:
    """Rewrite a graph in which each float32 value gets a float32 name, a half name, or both."""

    def __init__(self, model: onnx.ModelProto, half: HalfType) -> None:
        self.half = half
        self.old, self.new = model.graph, onnx.GraphProto(name=model.graph.name)
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.infos = {v.name: v for v in (*inferred.value_info, *inferred.input, *inferred.output)}
        self.floats = {n for n, v in self.infos.items() if v.type.tensor_type.elem_type == FLOAT}
        self.floats |= {i.name for i in self.old.initializer if i.data_type == FLOAT}
        self.outputs = {o.name for o in self.old.output}
        self.used_names = {*self.infos, *(i.name for i in self.old.initializer)}
        self.used_names |= {name for node in self.old.node for name in node.output}
        self.names: dict[tuple[str, bool], str] = {}  # (old name, is half) to new name
        self.names |= {(str(i.name), False): str(i.name) for i in self.old.input}

    def cast(self) -> onnx.GraphProto:
        types = self._choose_types()
        self._name_initializers(types)
        for node, (inputs, outputs) in zip(self.old.node, types, strict=True):
            new_inputs = [self._read(name, half) for name, half in zip(node.input, inputs, strict=True)]
            new_outputs = [self._write(name, half) for name, half in zip(node.output, outputs, strict=True)]
            new = self.new.node.add()
            new.CopyFrom(node)
            new.input[:], new.output[:] = new_inputs, new_outputs
        for output in self.old.output:
            self._read(output.name, half=False)
        self.new.input.extend(self.old.input)
        self.new.output.extend(self.old.output)
        self.new.initializer.extend(self._initializers())
        self.new.value_info.extend(self._value_infos())
        return self.new

    def _choose_types(self) -> list[IsHalf]:
        """Return for every node which inputs and outputs are half."""
        normalisation = normalisation_outputs(self.old)
        types: list[IsHalf] = []
        for node in self.old.node:
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise UnsupportedModel(
                    f"{node.op_type} {node.name} has a subgraph, which cannot be cast to {self.half.name}; "
                    "export with --precision fp32 or int8"
                )
            if node.output[0] in normalisation:
                types.append(([False] * len(node.input), [False]))
            else:
                types.append(half_inputs_outputs(node, self.opsets, self.floats, self.half.schema))
        return types

    def _name_initializers(self, types: list[IsHalf]) -> None:
        """Name the float32 initialisers; those that are read in both types get two names."""
        read_as_float = {
            name
            for node, (inputs, _) in zip(self.old.node, types, strict=True)
            for name, half in zip(node.input, inputs, strict=True)
            if not half
        }
        for tensor in self.old.initializer:
            if tensor.data_type == FLOAT:
                self.names[tensor.name, False] = tensor.name
                both = tensor.name in read_as_float
                self.names[tensor.name, True] = self._new_name(tensor.name, True) if both else tensor.name

    def _new_name(self, name: str, half: bool) -> str:
        """Return an unused name for a value in a type."""
        suffix = self.half.name if half else "fp32"
        count = 0
        while (new := f"{name}_{suffix}" + (f"_{count}" if count else "")) in self.used_names:
            count += 1
        self.used_names.add(new)
        return new

    def _read(self, name: str, half: bool) -> str:
        """Return the name of a value in a type; add a Cast if it exists only in the other one."""
        if name not in self.floats:
            return name
        if (name, half) not in self.names:
            other = self.names[name, not half]
            new = name if name in self.outputs and not half else self._new_name(name, half)
            to = self.half.element if half else FLOAT
            self.new.node.append(helper.make_node("Cast", [other], [new], f"cast_{new}", to=to))
            self.names[name, half] = new
        return self.names[name, half]

    def _write(self, name: str, half: bool) -> str:
        """Return the name of a node's output; a graph output's name belongs to its float32 value."""
        if name not in self.floats:
            return name
        self.names[name, half] = self._new_name(name, half) if half and name in self.outputs else name
        return self.names[name, half]

    def _initializers(self) -> Iterator[onnx.TensorProto]:
        used = {name for node in self.new.node for name in node.input}
        for tensor in self.old.initializer:
            if tensor.data_type != FLOAT:
                yield tensor
                continue
            as_float, as_half = self.names[tensor.name, False], self.names[tensor.name, True]
            if as_float in used and as_float != as_half:
                yield tensor
            if as_half in used:
                yield cast_tensor(tensor, as_half, self.half)

    def _value_infos(self) -> Iterator[onnx.ValueInfoProto]:
        initializers = {tensor.name for tensor in self.old.initializer}
        written = {name for node in self.new.node for name in node.output} - self.outputs
        for name, info in self.infos.items():
            for half in (False, True) if name in self.floats and name not in initializers else ():
                new = self.names.get((name, half), "")
                if new in written:
                    typed = onnx.ValueInfoProto()
                    typed.CopyFrom(info)
                    typed.name = new
                    typed.type.tensor_type.elem_type = self.half.element if half else FLOAT
                    yield typed
            if name not in self.floats and name in written:
                yield info
