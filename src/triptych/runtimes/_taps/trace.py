"""What PyTorch's modules took and gave in one run, as values: the reference's side of locating."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one module. Tensors are known by numbers.

    Attributes:
        module: its name in the tree of modules; empty for the component itself.
        kind: its class.
        inputs: the tensors among its arguments.
        outputs: the tensors among its results.
        parent: the position of the call that it was made in; None for the component itself.
        is_leaf: whether it called no other module.
    """

    module: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    parent: int | None
    is_leaf: bool


@final
@dataclass(frozen=True)
class Trace:
    """One run of a component. Only tensors of floats are recorded.

    Attributes:
        calls: in the order in which they began; the first is the component's own.
        shapes: of each tensor, by number; numbers grow in the order in which tensors were seen.
        outputs: numbers of the component's results, by name.
    """

    calls: tuple[Call, ...]
    shapes: tuple[tuple[int, ...], ...]
    outputs: dict[str, int]

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """The positions of the calls that called no other."""
        return tuple(at for at, call in enumerate(self.calls) if call.is_leaf)

    def maker(self, tensor: int) -> int | None:
        """The innermost call that made a tensor; None where operators between modules did."""
        return self._makers.get(tensor)

    def receiver(self, tensor: int, call: int) -> int:
        """The outermost of the calls around this one that were given the tensor."""
        parent = self.calls[call].parent
        while parent is not None and tensor in self.calls[parent].inputs:
            call, parent = parent, self.calls[parent].parent
        return call

    def leaves_between(self, first: int, last: int) -> Iterator[int]:
        """The leaf calls whose result was made after one tensor, and not after another."""
        for at in self.leaves:
            made = [tensor for tensor in self.calls[at].outputs if self.maker(tensor) == at]
            if any(first < tensor <= last for tensor in made):
                yield at

    def ancestors(self, call: int) -> Iterator[int]:
        """A call, the call it was made in, and so on to the component's own."""
        at: int | None = call
        while at is not None:
            yield at
            at = self.calls[at].parent

    @cached_property
    def _makers(self) -> dict[int, int]:
        makers: dict[int, int] = {}
        for at, call in enumerate(self.calls):
            # a later call is the inner one; what only hands a tensor on, as dropout, made nothing
            makers.update({tensor: at for tensor in call.outputs if tensor not in call.inputs})
        return makers
