"""From a torch module to a Core ML model in memory."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triptych.dependencies import quiet_coremltools
from triptych.exporters._coreml_passes import make_pipeline, may_be_half
from triptych.exporters._memory import release_memory
from triptych.tensors import TensorSpec
from triptych.types import DeploymentTarget

if TYPE_CHECKING:
    import coremltools
    import torch


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Keep coremltools' copies of a model in a folder, and remove them at the end.

    By itself it has them in the system's folder for temporary files until the process ends, and for
    ever where that is killed: as many bytes as the model.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        tempfile.tempdir = scratch
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextlib.contextmanager
def checked_once() -> Iterator[None]:
    """Have coremltools check the last program of a block at its end, not after each of its passes.

    There are about 110 passes, and all those checks took three tenths of converting the tiny
    checkpoint (coremltools 9: PassPipelineManager.apply_pipeline). They change nothing in the
    program.
    """
    from coremltools.converters.mil.mil import Program

    check = Program.validate
    unchecked: list[Program] = []

    def put_off(program: Program, check_essential_scope: bool | None = False) -> None:  # noqa: FBT001, FBT002  # coremltools' signature
        del check_essential_scope
        unchecked[:] = [program]

    Program.validate = put_off
    try:
        yield
    finally:
        Program.validate = check
    for program in unchecked:
        program.validate()


def convert_module(
    module: "torch.nn.Module",
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    half: bool,
    deployment_target: DeploymentTarget,
) -> "coremltools.models.MLModel":
    """Trace a module at fixed shapes and convert it to an ML program.

    Args:
        module: float32, on the CPU; forward takes the inputs in this order.
        inputs: names, lengths and dtypes at the program's border.
        outputs: names of the results, in order; they are float32.
        half: compute in float16, but for what leads to sinusoids.
        deployment_target: the oldest system that runs it.
    """
    import coremltools
    import torch

    from triptych.exporters._shapes_only import LinearShapesOnly

    # Zeros serve: the trace depends on shapes alone.
    examples = tuple(torch.from_numpy(np.zeros(port.shape, np.float32)) for port in inputs)
    # The tracer warns of branches on shapes, which are fixed here.
    with torch.no_grad(), quiet_coremltools():
        with LinearShapesOnly():
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch declares no types
                module, examples, check_trace=False
            )
        release_memory()
        with checked_once():
            return coremltools.convert(
                traced,
                convert_to="mlprogram",
                inputs=[
                    coremltools.TensorType(
                        name=port.name, shape=port.shape, dtype=np.dtype(port.dtype).type
                    )
                    for port in inputs
                ],
                outputs=[
                    coremltools.TensorType(name=port.name, dtype=np.float32) for port in outputs
                ],
                compute_precision=(
                    coremltools.transform.FP16ComputePrecision(op_selector=may_be_half)
                    if half
                    else coremltools.precision.FLOAT32
                ),
                minimum_deployment_target=getattr(coremltools.target, deployment_target),
                pass_pipeline=make_pipeline(),
                skip_model_load=True,
            )
