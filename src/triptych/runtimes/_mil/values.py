"""The values alive while a program runs: what was computed and is still needed, and constants.

Constants stay as they are stored. They are unpacked and widened for the one operation that asks for
them, so that a network of float16 or palettised weights never lies in memory as float32.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import numpy as np

from triptych.errors import BackendError, BundleError
from triptych.mil.program import Operation, Program
from triptych.mil.weights import Weight
from triptych.runtimes._mil.operators.constexpr import DECOMPRESSORS
from triptych.tensors import TensorSpec, describe
from triptych.types import Array

if TYPE_CHECKING:
    import torch

Mode: TypeAlias = Literal["fp32", "declared"]
"""Float32 throughout, or each result rounded to the dtype that the program declares for it."""

_COMPUTED_AS: Mapping[str, str] = {
    **dict.fromkeys(("float16", "float32"), "float32"),
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int32"),
    **dict.fromkeys(("int4", "uint1", "uint2", "uint3", "uint4", "uint6"), "int32"),
    "uint32": "int64",
    "bool": "bool",
}


@final
class Values:
    """Named values of one run. Operators read them; only the interpreter stores and drops them."""

    def __init__(self, program: Program, *, mode: Mode) -> None:
        self._program = program
        self._mode = mode
        self._computed: dict[str, torch.Tensor] = {}
        self._decompressions = {
            spec.name: operation
            for operation in program.operations
            if operation.is_decompression
            for spec in operation.outputs
        }

    def tensor(self, name: str) -> "torch.Tensor":
        """A value to compute with: floats as float32, integers as int32 or wider, or booleans."""
        import torch

        if name in self._computed:
            stored = self._computed[name]
            return stored.float() if stored.dtype == torch.float16 else stored
        array = self.constant(name)
        return torch.from_numpy(np.array(array, dtype=_COMPUTED_AS[str(array.dtype)]))

    def text(self, name: str) -> str:
        """A constant word."""
        word = self._program.constants.get(name)
        if not isinstance(word, str):
            raise BundleError(f"{self._program.name} {name!r}: got numbers, want a word.")
        return word

    def constant(self, name: str) -> Array:
        """A constant as it is stored, or as coremltools would unpack it."""
        if name in self._decompressions:
            return self._decompress(self._decompressions[name])
        constant = self._program.constants[name]
        if isinstance(constant, str):
            raise BundleError(f"{self._program.name} {name!r}: got {constant!r}, want numbers.")
        return constant.load() if isinstance(constant, Weight) else constant

    def computed(self, name: str) -> "torch.Tensor":
        """A computed value as it is kept: in the mode's precision."""
        return self._computed[name]

    def store(self, spec: TensorSpec, tensor: "torch.Tensor", *, source: str) -> None:
        """Keep a value in the dtype that the program declares, or float32 in the mode `fp32`.

        It is kept in C order: the summation order of a matrix product depends on the layout of its
        inputs, and a value that crosses a border between two programs must not change by it.

        Args:
            spec: as the program declares it.
            tensor: what was computed.
            source: what computed it, for messages.

        Raises:
            BackendError: it has another shape than the program declares, or an integer that the
                declared dtype does not hold.
        """
        if len(spec.shape) != tensor.ndim or any(
            isinstance(want, int) and want != got
            for want, got in zip(spec.shape, tensor.shape, strict=True)
        ):
            raise BackendError(
                f"{source}: got {spec.name!r} of {list(tensor.shape)}, want {spec.text()} as the "
                "program declares. The program contradicts itself, or the interpreter is wrong."
            )
        rounded = self._rounded(tensor, spec, source=source).contiguous()
        if rounded.untyped_storage().nbytes() > rounded.nbytes:
            rounded = rounded.clone()  # a part of another tensor, which would live as long
        self._computed[spec.name] = rounded

    def drop(self, name: str) -> None:
        """Give a computed value's memory back."""
        del self._computed[name]

    def output(self, spec: TensorSpec) -> Array:
        """A value for the caller, who owns it."""
        if spec.name not in self._computed:
            return np.array(self.tensor(spec.name).numpy(), dtype=self._output_dtype(spec))
        return self._computed[spec.name].numpy().astype(self._output_dtype(spec))

    def _output_dtype(self, spec: TensorSpec) -> str:
        halves_widened = self._mode == "fp32" and spec.dtype == "float16"
        return "float32" if halves_widened else spec.dtype

    def _rounded(self, tensor: "torch.Tensor", spec: TensorSpec, *, source: str) -> "torch.Tensor":
        import torch

        if spec.dtype in ("float16", "float32"):
            half = spec.dtype == "float16" and self._mode == "declared"
            return tensor.to(torch.float16 if half else torch.float32)
        if spec.dtype == "bool":
            return tensor.to(torch.bool)
        limits = np.iinfo(spec.dtype)
        whole = tensor.long()
        if whole.numel() and not limits.min <= int(whole.min()) <= int(whole.max()) <= limits.max:
            raise BackendError(
                f"{source}: got {spec.name!r} from {int(whole.min())} to {int(whole.max())}, want "
                f"{limits.min} to {limits.max}: {spec.dtype} holds no more."
            )
        return whole.to(getattr(torch, _COMPUTED_AS[spec.dtype]))

    def _decompress(self, operation: Operation) -> Array:
        inputs = {
            parameter: self.constant(names[0])
            for parameter, names in operation.inputs.items()
            if not isinstance(self._program.constants.get(names[0]), str)
        }
        try:
            unpacked = DECOMPRESSORS[operation.type](inputs)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise BundleError(
                f"{self._program.name} {operation.name!r}: got inputs that {operation.type} "
                f"cannot unpack ({error!r}). The file is damaged."
            ) from error
        (spec,) = operation.outputs
        if (str(unpacked.dtype), unpacked.shape) != (spec.dtype, spec.shape):
            raise BundleError(
                f"{self._program.name} {operation.name!r}: got {describe(unpacked)}, want "
                f"{spec.text()} as the program declares. The file is damaged."
            )
        return unpacked
