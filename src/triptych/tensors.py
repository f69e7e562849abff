"""Tensor specs, and the only place where shapes and dtypes are checked."""

from collections.abc import Iterable
from dataclasses import dataclass

from triptych.errors import TensorMismatchError
from triptych.types import Array, TensorMap


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """The contract of one tensor.

    Attributes:
        name: the tensor's name on its side of the border.
        dtype: NumPy's name of the dtype, for example "float32".
        shape: one entry an axis. An int is fixed; a word names an axis that must have one length
            across all tensors of a run; "8*height" is a multiple of a named axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def text(self) -> str:
        """Dtype and axes, as error messages and tables show them."""
        return f"{self.dtype} [{', '.join(str(axis) for axis in self.shape)}]"


def describe(tensor: Array) -> str:
    """The dtype and shape of an array, as error messages show them."""
    return f"{tensor.dtype} [{', '.join(str(length) for length in tensor.shape)}]"


def check_tensors(
    tensors: TensorMap,
    specs: Iterable[TensorSpec],
    *,
    component: str,
    axes: dict[str, int] | None = None,
) -> dict[str, int]:
    """Check names, dtypes and shapes against specs, binding the named axes.

    Nothing is broadcast and nothing is cast.

    Args:
        tensors: what is to cross the border.
        specs: what must be there; every spec needs its tensor and every tensor its spec.
        component: where, for the message.
        axes: axes bound already, for example by the inputs when outputs are checked.

    Returns:
        The length of every named axis.

    Raises:
        TensorMismatchError: a tensor is missing, unknown, or not as its spec says.
    """
    bound = dict(axes or {})
    by_name = {spec.name: spec for spec in specs}
    for name in sorted(by_name.keys() - tensors.keys()):
        raise TensorMismatchError(
            component=component, tensor=name, actual="nothing", expected=by_name[name].text()
        )
    for name in sorted(tensors.keys() - by_name.keys()):
        raise TensorMismatchError(
            component=component,
            tensor=name,
            actual=describe(tensors[name]),
            expected=f"one of {', '.join(sorted(by_name))}",
        )
    for name, spec in by_name.items():
        _check_tensor(tensors[name], spec, component=component, bound=bound)
    return bound


def _check_tensor(
    tensor: Array, spec: TensorSpec, *, component: str, bound: dict[str, int]
) -> None:
    fits = (
        str(tensor.dtype) == spec.dtype
        and tensor.ndim == len(spec.shape)
        and all(
            _axis_fits(axis, length, bound)
            for axis, length in zip(spec.shape, tensor.shape, strict=True)
        )
    )
    if not fits:
        names = {_factor_and_name(axis)[1] for axis in spec.shape if isinstance(axis, str)}
        known = [f"{name} = {bound[name]}" for name in sorted(names & bound.keys())]
        hint = f"Here {', '.join(known)}." if known else ""
        raise TensorMismatchError(
            component=component,
            tensor=spec.name,
            actual=describe(tensor),
            expected=spec.text(),
            hint=hint,
        )


def _axis_fits(axis: int | str, length: int, bound: dict[str, int]) -> bool:
    """Whether one length fits one axis; the first length seen binds a named axis."""
    if isinstance(axis, int):
        return length == axis
    factor, name = _factor_and_name(axis)
    return length % factor == 0 and length // factor == bound.setdefault(name, length // factor)


def _factor_and_name(axis: str) -> tuple[int, str]:
    factor, star, name = axis.rpartition("*")
    return (int(factor) if star else 1), name
