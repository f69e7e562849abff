"""What is changed in a program while coremltools converts it, and what it is told to keep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np

from triptych.mil.facts import MASKED

if TYPE_CHECKING:
    from coremltools import PassPipeline
    from coremltools.converters.mil.mil import Block, Operation, Program, Var

_NEGLIGIBLE = -1e30
"""No weight is below this; float32's lowest number, with which transformers masks, is."""

_SINUSOID_STEPS = ("mul", "tile", "expand_dims", "reshape", "cast")
_SINUSOID_DEPTH = 6

BlockEdit: TypeAlias = Callable[["Block"], None]


def make_pipeline() -> "PassPipeline":
    """Coremltools' default passes, with ours among them."""
    import coremltools
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    pipeline = coremltools.PassPipeline.DEFAULT
    for name, edit, anchor, offset in (
        ("triptych::exact_batch_norm", undo_epsilon, "common::fuse_elementwise_to_batchnorm", 1),
        ("triptych::finite_masks", bound_masks, "common::add_fp16_cast", 0),
    ):
        PASS_REGISTRY.passes[name] = ProgramPass(edit=edit)
        pipeline.insert_pass(pipeline.passes.index(anchor) + offset, name)
    return pipeline


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPass:
    """What coremltools' pipeline takes for a pass.

    Attributes:
        edit: changes one block in place.
    """

    edit: BlockEdit

    def set_options(self, options: Sequence[object] | None = None) -> None:
        """There are none."""

    def __call__(self, program: "Program") -> None:
        """Change every function of the program."""
        from coremltools.converters.mil.mil import Builder
        from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

        scope = ScopeInfo(source=ScopeSource.COREMLTOOLS_GRAPH_PASS, data=[str(self)])
        for function in program.functions.values():
            with function, Builder.scope(scope):
                self.edit(function)


def undo_epsilon(block: "Block") -> None:
    """Make batch_norm multiply by its gamma exactly.

    coremltools 9 fuses `x * weight + bias`, the end of every group norm, into a batch_norm of
    variance 1 and leaves its epsilon at 1e-5, so that each group norm comes out 5e-6 too small:
    1.4e-5 relative L2 at the end of a U-Net. Epsilon stays, because nothing says that Apple's
    runtime takes a zero; gamma grows by what it takes away.
    """
    from coremltools.converters.mil.mil import Builder

    for step in list(block.operations):
        if step.op_type != "batch_norm" or not np.all(step.variance.val == 1):
            continue
        gamma = np.asarray(step.gamma.val)
        exact = gamma * np.sqrt(1 + np.float64(step.epsilon.val))
        scaled = Builder.batch_norm(
            x=step.x,
            mean=step.mean,
            variance=step.variance,
            gamma=exact.astype(gamma.dtype),
            beta=step.beta,
            epsilon=step.epsilon,
            before_op=step,
            name=step.name,
        )
        _replace(block, step, scaled)


def bound_masks(block: "Block") -> None:
    """Replace minus infinity, or float32's lowest number, by one that half precision holds."""
    from coremltools.converters.mil.mil import Builder

    for step in list(block.operations):
        if step.op_type != "const" or not _is_mask(step.outputs[0].val):
            continue
        bounded = np.maximum(step.outputs[0].val, np.asarray(MASKED, step.outputs[0].val.dtype))
        _replace(block, step, Builder.const(val=bounded, before_op=step, name=step.name))


def _is_mask(value: object) -> bool:
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
        return False
    return bool(np.any(value < _NEGLIGIBLE))


def _replace(block: "Block", step: "Operation", replacement: "Var") -> None:
    block.replace_uses_of_var_after_op(
        anchor_op=step, old_var=step.outputs[0], new_var=replacement, no_check_var_types=True
    )
    block.remove_ops([step])


def may_be_half(step: "Operation") -> bool:
    """Whether an operator may compute in float16: all but those that lead to a sine or cosine.

    Half precision holds integers to 2048 only, and 999 times a frequency with 3 digits: rounding
    there costs 20 dB of the whole U-Net at timestep 999.
    """
    return step.op_type not in ("sin", "cos") and not any(
        _leads_to_sinusoid(output, _SINUSOID_DEPTH) for output in step.outputs
    )


def _leads_to_sinusoid(variable: "Var", depth: int) -> bool:
    return any(
        reader.op_type in ("sin", "cos")
        or (
            depth > 0
            and reader.op_type in _SINUSOID_STEPS
            and any(_leads_to_sinusoid(output, depth - 1) for output in reader.outputs)
        )
        for reader in variable.child_ops
    )
