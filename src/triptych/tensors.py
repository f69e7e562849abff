"""Tensor specs, and the only place where shapes and dtypes are checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PortSpecs:
    """What a network takes and gives, in one vocabulary.

    Attributes:
        inputs: the feed.
        outputs: what is computed from it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


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
    fits = str(tensor.dtype) == spec.dtype and shape_fits(spec.shape, tensor.shape, bound=bound)
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


def shape_fits(
    shape: tuple[int | str, ...], lengths: Sequence[int], *, bound: dict[str, int]
) -> bool:
    """Whether lengths are those of a spec's shape.

    Args:
        shape: the spec's axes.
        lengths: what is there.
        bound: the lengths of named axes so far; axes seen for the first time are added.
    """
    return len(shape) == len(lengths) and all(
        _axis_fits(axis, length, bound) for axis, length in zip(shape, lengths, strict=True)
    )


def fixed_axes(
    specs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int | str, ...]]
) -> dict[str, int]:
    """The named axes that a graph has a fixed length for.

    Args:
        specs: tensors with words for their axes.
        shapes: the graph's shapes by tensor name; words where it takes any length.
    """
    axes: dict[str, int] = {}
    for spec in specs:
        for axis, length in zip(spec.shape, shapes.get(spec.name, ()), strict=False):
            if isinstance(axis, str) and isinstance(length, int):
                factor, name = _factor_and_name(axis)
                axes.setdefault(name, length // factor)
    return axes


def axis_length(axis: int | str, axes: Mapping[str, int]) -> int | None:
    """The length of one axis of a spec, given named ones; None where its name is not given."""
    if isinstance(axis, int):
        return axis
    factor, name = _factor_and_name(axis)
    return axes[name] * factor if name in axes else None


def _axis_fits(axis: int | str, length: int, bound: dict[str, int]) -> bool:
    """Whether one length fits one axis; the first length seen binds a named axis."""
    if isinstance(axis, int):
        return length == axis
    factor, name = _factor_and_name(axis)
    return length % factor == 0 and length // factor == bound.setdefault(name, length // factor)


def _factor_and_name(axis: str) -> tuple[int, str]:
    factor, star, name = axis.rpartition("*")
    return (int(factor) if star else 1), name
