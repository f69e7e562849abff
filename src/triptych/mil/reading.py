"""Reading a .mlpackage: its manifest, its protobuf, and where its weights lie."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from triptych.dependencies import import_coremltools
from triptych.errors import BundleError
from triptych.mil.dtypes import PROGRAM_TYPES, STRING_CODE, ElementType
from triptych.mil.program import Constant, Operation, Program
from triptych.mil.weights import WeightFiles
from triptych.tensors import TensorSpec

if TYPE_CHECKING:
    import coremltools.proto

_OPSET = re.compile(r"^CoreML(\d+)$")


def read_program(package: Path, *, operators: Collection[str] | None = None) -> Program:
    """Read a package's program; weights stay in their file.

    Args:
        package: the .mlpackage folder.
        operators: the types of operation that the caller can run; None where it runs none.

    Raises:
        BundleError: the package is incomplete or damaged, holds another kind of model, or a
            program with other operators than these.
        MissingDependencyError: coremltools is not installed.
    """
    model_file = _model_file(package)
    model = _parse(model_file)
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise BundleError(f"{model_file}: got a model of type {kind}, want an mlProgram.")
    others = [
        repr(port.name)
        for port in (*model.description.input, *model.description.output, *model.description.state)
        if port.type.WhichOneof("Type") != "multiArrayType"
    ]
    if others:
        raise BundleError(
            f"{model_file}: got {', '.join(others)} as an image, a state or a dictionary, want "
            "arrays only. Convert with ct.TensorType."
        )
    functions = model.mlProgram.functions
    name = model.description.defaultFunctionName or "main"
    if name not in functions:
        raise BundleError(
            f"{model_file}: got functions {', '.join(sorted(functions)) or 'none'}, want {name!r}."
        )
    return _Reader(model_file).program(functions[name], name=package.stem, operators=operators)


def _model_file(package: Path) -> Path:
    """The file that the package's manifest names as its model."""
    manifest = package / "Manifest.json"
    try:
        entries = json.loads(manifest.read_bytes())
        path = str(entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"])
        model_file = package / "Data" / path
    except OSError as error:
        raise BundleError(f"{manifest}: got {error}, want the manifest of a package.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{manifest}: got no JSON object that names a root model ({error!r}), want one. "
            "The file is damaged."
        ) from error
    if not model_file.resolve().is_relative_to(package.resolve()):
        raise BundleError(f"{manifest}: got a model at {path!r}, want one inside the package.")
    return model_file


def _parse(model_file: Path) -> "coremltools.proto.Model_pb2.Model":
    import_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import (  # type: ignore[import-untyped]  # none published
        DecodeError,
    )

    model = Model_pb2.Model()
    try:
        model.ParseFromString(model_file.read_bytes())
    except (OSError, DecodeError) as error:
        raise BundleError(
            f"{model_file}: got {error}, want a Core ML model. The file is missing or damaged."
        ) from error
    return model


@final
class _Reader:
    """Turns one function's messages into values; `_file` is for messages."""

    def __init__(self, model_file: Path) -> None:
        self._file = model_file
        self._weights = WeightFiles(model_file.parent)
        self._constants: dict[str, Constant] = {}

    def program(
        self,
        function: "coremltools.proto.MIL_pb2.Function",
        *,
        name: str,
        operators: Collection[str] | None,
    ) -> Program:
        opset = _OPSET.match(function.opset)
        if opset is None or function.opset not in function.block_specializations:
            raise BundleError(
                f"{self._file}: got a function of opset {function.opset!r} without its block, "
                "want a block of opset CoreML5 or later."
            )
        block = function.block_specializations[function.opset]
        types = Counter(step.type for step in block.operations if step.type != "const")
        if operators is not None and (unknown := sorted(types.keys() - set(operators))):
            counted = ", ".join(f"{name} (used {types[name]} times)" for name in unknown)
            raise BundleError(
                f"{self._file}: got operators that are not known here: {counted}. "
                "Convert the model without them."
            )
        inputs = tuple(self._spec(port) for port in function.inputs)
        operations = tuple(
            operation for step in block.operations if (operation := self._operation(step))
        )
        specs = {spec.name: spec for spec in inputs}
        specs |= {spec.name: spec for step in operations for spec in step.outputs}
        self._check_order(inputs, operations)
        if absent := sorted(set(block.outputs) - specs.keys()):
            raise BundleError(
                f"{self._file}: got outputs {', '.join(absent)} that nothing computes. "
                "The file is damaged."
            )
        return Program(
            name=name,
            opset=int(opset[1]),
            inputs=inputs,
            outputs=tuple(specs[output] for output in block.outputs),
            operations=operations,
            constants=self._constants,
        )

    def _check_order(self, inputs: Iterable[TensorSpec], operations: Iterable[Operation]) -> None:
        """Every value must be there before it is used."""
        known = {spec.name for spec in inputs} | self._constants.keys()
        for operation in operations:
            used = {name for names in operation.inputs.values() for name in names}
            if missing := sorted(used - known):
                raise BundleError(
                    f"{self._file}: {operation.type} {operation.name!r}: got inputs "
                    f"{', '.join(missing)} that nothing before it computes. The file is damaged."
                )
            known |= {spec.name for spec in operation.outputs}

    def _operation(self, step: "coremltools.proto.MIL_pb2.Operation") -> Operation | None:
        """A step of the program; None for a constant, which is kept among the constants."""
        outputs = [port.name for port in step.outputs]
        if step.type == "const":
            self._constants[outputs[0]] = self._constant(step.attributes["val"], outputs[0])
            return None
        name = outputs[0] if outputs else step.type
        inputs: dict[str, tuple[str, ...]] = {}
        for parameter, argument in step.inputs.items():
            inputs[parameter] = tuple(
                binding.name
                if binding.WhichOneof("binding") == "name"
                else self._keep(binding.value, f"{name}.{parameter}.{index}")
                for index, binding in enumerate(argument.arguments)
            )
        for parameter, value in step.attributes.items():
            if parameter == "name":
                name = str(value.immediateValue.tensor.strings.values[0])
            else:  # the parameters of iOS16's constexpr operators
                inputs[parameter] = (self._keep(value, f"{outputs[0]}.{parameter}"),)
        return Operation(
            name=name,
            type=step.type,
            inputs=inputs,
            outputs=tuple(self._spec(port) for port in step.outputs),
        )

    def _keep(self, value: "coremltools.proto.MIL_pb2.Value", name: str) -> str:
        """Give a value written in place a name, as if it were a constant."""
        self._constants[name] = self._constant(value, name)
        return name

    def _constant(self, value: "coremltools.proto.MIL_pb2.Value", name: str) -> Constant:
        tensor_type = self._tensor_type(value.type, name)
        shape = tuple(int(axis.constant.size) for axis in tensor_type.dimensions)
        if tensor_type.dataType == STRING_CODE:
            return str(value.immediateValue.tensor.strings.values[0])
        element_type = self._element_type(tensor_type.dataType, name)
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            return self._weights.weight(
                blob.fileName, int(blob.offset), element_type=element_type, shape=shape
            )
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if field == "bytes":
            packed = np.frombuffer(tensor.bytes.values, np.uint8)
            array = element_type.unpack(packed, math.prod(shape))
        else:
            numbers = getattr(tensor, field).values if field else ()
            array = np.array(numbers, dtype=element_type.container)
        if array.size != math.prod(shape):
            raise BundleError(
                f"{self._file}: constant {name!r}: got {array.size} elements, want "
                f"{list(shape)}. The file is damaged."
            )
        return array.reshape(shape)

    def _spec(self, port: "coremltools.proto.MIL_pb2.NamedValueType") -> TensorSpec:
        """A value's dtype and shape; an axis left open is named after the value."""
        tensor_type = self._tensor_type(port.type, port.name)
        shape = tuple(
            int(axis.constant.size)
            if axis.WhichOneof("dimension") == "constant"
            else f"{port.name}.{index}"
            for index, axis in enumerate(tensor_type.dimensions)
        )
        element_type = self._element_type(tensor_type.dataType, port.name)
        return TensorSpec(name=port.name, dtype=element_type.name, shape=shape)

    def _tensor_type(
        self, value_type: "coremltools.proto.MIL_pb2.ValueType", name: str
    ) -> "coremltools.proto.MIL_pb2.TensorType":
        kind = value_type.WhichOneof("type")
        if kind != "tensorType":
            raise BundleError(f"{self._file}: {name!r}: got a value of {kind}, want a tensor.")
        return value_type.tensorType

    def _element_type(self, code: int, name: str) -> ElementType:
        if code not in PROGRAM_TYPES:
            known = ", ".join(element_type.name for element_type in PROGRAM_TYPES.values())
            raise BundleError(
                f"{self._file}: {name!r}: got elements of type {code} (MIL.proto, DataType), want "
                f"one of {known}."
            )
        return PROGRAM_TYPES[code]
