"""Every operator by its type. A type that is not here is refused when a program is opened."""

from collections.abc import Mapping

from triptych.runtimes._mil.operators import (
    activation,
    convolution,
    creation,
    elementwise,
    gather,
    linear,
    normalization,
    reduction,
    shape,
    slicing,
)
from triptych.runtimes._mil.operators.arguments import Operator

OPERATORS: Mapping[str, Operator] = {
    **activation.OPERATORS,
    **convolution.OPERATORS,
    **creation.OPERATORS,
    **elementwise.OPERATORS,
    **gather.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **reduction.OPERATORS,
    **shape.OPERATORS,
    **slicing.OPERATORS,
}
