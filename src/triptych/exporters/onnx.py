"""ONNX in optimum's layout, without holding the weights.

The graph is traced on a skeleton whose parameters occupy one element each, so tracing costs the
same for 4 million parameters and for 2.6 billion. The weights then go from the mapped checkpoint
into the file one tensor at a time, converted on the way where the precision asks for it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, final

from triptych.bundle.layouts import ARTIFACT_FILES
from triptych.dependencies import import_optional
from triptych.errors import UsageError
from triptych.exporters._onnx_graph import check_graph, describe_graph
from triptych.exporters._onnx_group_norm import add_up_by_rows
from triptych.exporters._onnx_in_place import leave_weights_in_place
from triptych.exporters._onnx_quantization import quantize_graph
from triptych.exporters._onnx_trace import trace_component
from triptych.exporters.base import ArtifactFacts, ExportReporter, ExportSettings
from triptych.models.checkpoint import Checkpoint
from triptych.models.precisions import check_export_precision, is_compressed
from triptych.models.sdxl import SdxlConfig, component_precision
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weights import stream_tensors
from triptych.types import ComponentName, FormatName, Precision

if TYPE_CHECKING:
    import onnx
    import torch

EXTERNAL_DATA_BYTES = 1 << 26
"""Graphs with more weights than this keep them beside the graph, where engines map them: weights
inside are copied whenever the graph is read, and protobuf ends at 2 GiB."""

EXTERNAL_DATA_NAME = "model.onnx_data"
"""optimum's name for the file of external weights."""

_ALIGNMENT_BYTES = 4096  # so that engines can map every tensor at a page
_SMALL_TENSOR_BYTES = 1024  # stay in the graph, where shape inference can read them


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxExporter:
    """Exports to ONNX.

    Attributes:
        settings: the precision to store and compute in.
    """

    settings: ExportSettings
    format: FormatName = "onnx"
    verified_on: str = "onnxruntime"

    def export(
        self,
        checkpoint: Checkpoint,
        component: ComponentName,
        folder: Path,
        *,
        report: ExportReporter,
    ) -> None:
        """Write model.onnx, and model.onnx_data where the weights are over 64 MiB.

        Raises:
            UsageError: weights are to stay in place, but none is stored in the graph's dtype.
            OutputError: they are, but the checkpoint is on another filesystem.
        """
        torch = import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")
        from triptych.models.modules import skeleton_module

        precision = self.precision_of(component, checkpoint.config)
        dtype = torch.float16 if precision == "fp16" else torch.float32
        report("tracing", 0.0)
        module, stored = skeleton_module(checkpoint, component, dtype=dtype)
        model = trace_component(module, component, checkpoint)
        del module
        if component in ("vae_encoder", "vae_decoder") and dtype == torch.float32:
            add_up_by_rows(model)
        report("weights", 0.4)
        path = folder / component / ARTIFACT_FILES["onnx"]
        path.parent.mkdir(exist_ok=True)
        # A VAE that stays float32 beside a float16 checkpoint is copied: nobody asked otherwise.
        if self.settings.weights_in_place and precision == self.settings.precision:
            word = "F16" if dtype == torch.float16 else "F32"
            leave_weights_in_place(model, stored, dtype=word, folder=path.parent)
        _attach_weights(model, stored, dtype=dtype, data_path=path.with_name(EXTERNAL_DATA_NAME))
        path.write_bytes(model.SerializeToString())
        del model
        if is_compressed(precision):
            report("quantising", 0.6)
            quantize_graph(path, precision)
        report("checking", 0.7)
        check_graph(path, is_linked=self.settings.weights_in_place)

    def export_assets(self, folder: Path) -> None:
        """ONNX clients read the checkpoint's own tokenizers: nothing to write."""

    def precision_of(self, component: ComponentName, config: SdxlConfig) -> Precision:
        """What was asked for, but fp32 for a VAE that half precision overflows."""
        return component_precision(component, config, self.settings.precision)

    def describe(self, *paths: Path) -> ArtifactFacts:
        """Read a graph's inputs, outputs, opset and weight dtypes."""
        (path,) = paths
        return describe_graph(path)


def make_exporter(settings: ExportSettings) -> OnnxExporter:
    """An ONNX exporter with these settings.

    Raises:
        UsageError: a precision that ONNX engines do not compute in, or that the checkpoint's own
            weights are not in.
    """
    check_export_precision("onnx", settings.precision)
    if settings.weights_in_place and is_compressed(settings.precision):
        raise UsageError(
            f"onnx: got precision {settings.precision!r} with weights in place, want fp32 or fp16: "
            "compressed weights are others than the checkpoint's."
        )
    return OnnxExporter(settings=settings)


def _attach_weights(
    model: "onnx.ModelProto",
    stored: Mapping[str, StoredTensor],
    *,
    dtype: "torch.dtype",
    data_path: Path,
) -> None:
    """Turn the weight inputs into initializers and stream their data in.

    Weights that the graph only ever transposes are stored transposed, which spares every engine
    the same work, and a second copy, at load.
    """
    transposed = _fold_transposes(model, set(stored))
    used = [value.name for value in model.graph.input if value.name in stored]
    element_bytes = dtype.itemsize
    total = sum(math.prod(stored[name].shape) for name in used) * element_bytes
    external = data_path.open("wb") if total > EXTERNAL_DATA_BYTES else None
    try:
        for name, tensor in stream_tensors(stored, used):
            converted = tensor.to(dtype)
            converted = converted.t().contiguous() if name in transposed else converted.contiguous()
            _add_initializer(model, name, converted, external)
    finally:
        if external is not None:
            external.close()
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _fold_transposes(model: "onnx.ModelProto", weights: set[str]) -> set[str]:
    """Drop Transpose nodes that are a weight's only readers; return those weights' names."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        source = node.input[0] if node.input else ""
        is_folded = (
            node.op_type == "Transpose"
            and source in weights
            and readers[source] == 1
            and list(node.attribute[0].ints) == [1, 0]
        )
        if is_folded:
            renamed[node.output[0]] = source
        else:
            kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return set(renamed.values())


def _add_initializer(
    model: "onnx.ModelProto", name: str, tensor: "torch.Tensor", external: BinaryIO | None
) -> None:
    import onnx

    array = tensor.numpy()
    proto = model.graph.initializer.add()
    proto.name = name
    proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    proto.dims.extend(array.shape)
    if external is None or array.nbytes < _SMALL_TENSOR_BYTES:
        proto.raw_data = array.tobytes()
        return
    offset = -(-external.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    external.seek(offset)
    external.write(memoryview(array.data).cast("B"))
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": EXTERNAL_DATA_NAME, "offset": offset, "length": array.nbytes}
    for key, value in entries.items():
        entry = proto.external_data.add()
        entry.key, entry.value = key, str(value)
