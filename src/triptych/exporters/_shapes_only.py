"""Matrix products that are not computed while a module is traced.

Imports torch when it is itself imported, so import it inside the function that needs it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override


@final
class LinearShapesOnly(TorchFunctionMode):
    """Inside the block `torch.nn.functional.linear` gives zeros of the right shape.

    A half-precision product with weights that are one number expanded takes no fast path: on CPUs
    it is most of a trace. The tracer records the call before it comes down to a product, so the
    graph is the same. Convolutions are left alone: the tracer records them further down.
    """

    @override
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is not torch.nn.functional.linear:
            return func(*args, **(kwargs or {}))
        with _ProductShapesOnly():  # type: ignore[no-untyped-call]
            product: object = func(*args, **(kwargs or {}))  # type: ignore[arg-type]
            return product


@final
class _ProductShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What linear is made of, without the product."""

    @override
    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            return func(*args, **(kwargs or {}))
        left, right = args[-2:]
        assert isinstance(left, torch.Tensor)  # noqa: S101  torch's own signatures
        assert isinstance(right, torch.Tensor)  # noqa: S101
        return left.new_zeros([int(left.shape[0]), int(right.shape[1])])
