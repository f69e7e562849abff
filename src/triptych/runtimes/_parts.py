"""A network that is run part by part, so that the weights of one part fit.

Engines repack or widen every weight when they open a network: 10 GB of memory for the full-size
U-Net in float32. Here each part is opened, run and forgotten before the next. It takes long, and
gives what the whole gives, but that engines which widen half precision round once more where
it is cut.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from triptych.errors import BackendError
from triptych.runtimes.base import Execution
from triptych.tensors import TensorSpec
from triptych.types import Array, TensorMap

PART_BYTES = 1 << 26
"""Weights of one part, as they are stored."""

_SHAPE_LENGTH = 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator of a network, by the names of values.

    Attributes:
        reads: what it needs, but for weights in files.
        gives: what it computes.
        weight_bytes: of the weights that it reads from files, or holds.
    """

    reads: tuple[str, ...]
    gives: tuple[str, ...]
    weight_bytes: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Steps that are run together.

    Attributes:
        steps: their positions in the network, ascending. Steps that depend on no input are in
            every part that needs them.
        reads: values of earlier parts, or of the feed.
        gives: values that later parts, or the caller, read.
    """

    steps: tuple[int, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]


PartRunner: TypeAlias = Callable[[Part, Mapping[str, Array]], Mapping[str, Array]]
"""Opens a part, feeds it what it reads, and returns what it gives."""


@final
class PartsSession:
    """One network, part by part. Every run opens every part."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        run_part: PartRunner,
        values: Mapping[str, str],
        ports: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        execution: Execution,
    ) -> None:
        """`values` says under which name the network knows each of the ports."""
        self._parts = tuple(parts)
        self._run_part: PartRunner | None = run_part
        self._values = values
        self.inputs, self.outputs = ports
        self.execution = execution

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs."""
        if self._run_part is None:
            raise BackendError(
                f"{self.execution.runtime}: got a run on a closed session. Open it again."
            )
        known = {self._values[name]: value for name, value in feed.items()}
        kept = {self._values[name] for name in outputs}
        last_reader = {name: index for index, part in enumerate(self._parts) for name in part.reads}
        for index, part in enumerate(self._parts):
            known |= self._run_part(part, {name: known[name] for name in part.reads})
            finished = [name for name in known if last_reader.get(name, -1) <= index]
            for name in finished:
                if name not in kept:
                    del known[name]
        return {name: known[self._values[name]] for name in outputs}

    def close(self) -> None:
        """Release the network."""
        self._run_part = None


def is_shape(value: Array) -> bool:
    """Whether a value is lengths or axes: a part that has them as constants knows its shapes."""
    return value.dtype.kind == "i" and value.size <= _SHAPE_LENGTH


def cut(
    steps: Sequence[Step], *, results: Iterable[str], part_bytes: int | None = None
) -> tuple[Part, ...]:
    """Cut a network into parts.

    Args:
        steps: in an order in which they can run.
        results: the values that are wanted of it.
        part_bytes: a part ends before it has more weights than this, unless a single step has;
            None takes `PART_BYTES`.
    """
    limit = PART_BYTES if part_bytes is None else part_bytes
    wanted = set(results)
    constant = _constant_bytes(steps)
    makers = {name: index for index, step in enumerate(steps) for name in step.gives}
    groups: list[list[int]] = [[]]
    size = 0
    for index, step in enumerate(steps):
        if index in constant:
            continue
        weights = step.weight_bytes + sum(
            constant.get(makers[name], 0) for name in step.reads if name in makers
        )
        if groups[-1] and size + weights > limit:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += weights
    groups[-1] += [index for index in constant if wanted.intersection(steps[index].gives)]
    whole = [_with_constants(group, steps, constant, makers) for group in groups]
    reads = [_outside_reads(group, steps) for group in whole]
    parts = []
    for position in reversed(range(len(groups))):
        given = [name for index in whole[position] for name in steps[index].gives]
        parts.append(
            Part(
                steps=whole[position],
                reads=reads[position],
                gives=tuple(name for name in given if name in wanted),
            )
        )
        wanted |= set(reads[position])
    return tuple(reversed(parts))


def _constant_bytes(steps: Sequence[Step]) -> dict[int, int]:
    """The steps that depend on no input, and the bytes of weights behind each."""
    found: dict[int, int] = {}
    behind: dict[str, int] = {}
    for index, step in enumerate(steps):
        if all(name in behind for name in step.reads):
            found[index] = step.weight_bytes + sum(behind[name] for name in step.reads)
            behind.update(dict.fromkeys(step.gives, found[index]))
    return found


def _with_constants(
    group: Sequence[int],
    steps: Sequence[Step],
    constant: Mapping[int, int],
    makers: Mapping[str, int],
) -> tuple[int, ...]:
    """A group and the constant steps that it needs, in the network's order."""
    found = set(group)
    waiting = list(group)
    while waiting:
        for name in steps[waiting.pop()].reads:
            maker = makers.get(name)
            if maker is not None and maker in constant and maker not in found:
                found.add(maker)
                waiting.append(maker)
    return tuple(sorted(found))


def _outside_reads(group: Sequence[int], steps: Sequence[Step]) -> tuple[str, ...]:
    given = {name for index in group for name in steps[index].gives}
    read = (name for index in group for name in steps[index].reads)
    return tuple(dict.fromkeys(name for name in read if name not in given))
