"""A component's contract: names, axes and dtypes as data, in triptych's own vocabulary."""

from dataclasses import dataclass

from triptych.tensors import TensorSpec
from triptych.types import ComponentName


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec:
    """What one component takes and gives, whatever format or engine it runs in.

    Attributes:
        name: the component.
        inputs: the feed, in the order of the graph's arguments.
        outputs: the tensors that sampling and parity use. An artifact may have more.
    """

    name: ComponentName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
