"""OpenVINO IR in optimum-intel's layout, without holding the weights.

The graph is the one that the ONNX exporter traces on a skeleton. OpenVINO rewrites it, fusing
attention, while its weights are still inputs; they are then replaced by constants that lie in the
mapped checkpoint and are written once.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, final
from xml.etree import ElementTree as ET

import numpy as np

from triptych.bundle.layouts import ARTIFACT_FILES
from triptych.dependencies import import_optional
from triptych.errors import BundleError, UsageError
from triptych.exporters._onnx_group_norm import BY_ROWS, add_up_by_rows
from triptych.exporters._onnx_trace import trace_component
from triptych.exporters._openvino_activations import quantize_hybrid
from triptych.exporters._openvino_bfloat16 import sinusoids
from triptych.exporters._openvino_weights import WIDENED, attach_weights, compress_weights
from triptych.exporters.base import ArtifactFacts, ExportReporter, ExportSettings
from triptych.models.checkpoint import Checkpoint
from triptych.models.precisions import check_export_precision, is_compressed
from triptych.models.sdxl import SdxlConfig, component_precision
from triptych.tensors import TensorSpec
from triptych.types import ComponentName, FormatName, Precision

if TYPE_CHECKING:
    import openvino

VAE_ACTIVATIONS_SCALE = "128.0"
"""Devices that compute in float16 divide a VAE's activations by this where its config says
force_upcast. Source: optimum-intel 1.27.0, exporters/openvino/convert.py."""

_TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_NAMED_WEIGHTS = ("triptych", "weights")
"""Where our graphs say that weights can be told by their names."""

_NUMBERED = re.compile(r"^[A-Za-z]+_[0-9]+$")
"""Names that OpenVINO gives, numbered by a counter of the process: two exports would differ."""

_DTYPES = {"bf16": "bfloat16", "u4": "uint4", "i4": "int4", "nf4": "nf4"}
_WEIGHT_DTYPES = {"f64", "f32", "f16", "bf16", "i8", "u8", *_DTYPES}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoExporter:
    """Exports to OpenVINO IR.

    Attributes:
        settings: how weights are stored. The graph itself computes in float32, and a runtime may
            choose otherwise; that of bf16 computes in bfloat16.
    """

    settings: ExportSettings
    format: FormatName = "openvino"
    verified_on: str = "openvino"

    def export(
        self,
        checkpoint: Checkpoint,
        component: ComponentName,
        folder: Path,
        *,
        report: ExportReporter,
    ) -> None:
        """Write openvino_model.xml and openvino_model.bin."""
        torch = import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")
        openvino = _import_engine()
        from triptych.models.modules import skeleton_module

        precision = self.precision_of(component, checkpoint.config)
        path = folder / component / ARTIFACT_FILES["openvino"]
        path.parent.mkdir(exist_ok=True)
        report("tracing", 0.0)
        module, stored = skeleton_module(checkpoint, component, dtype=torch.float32)
        graph = trace_component(module, component, checkpoint)
        del module
        if component in ("vae_encoder", "vae_decoder"):
            add_up_by_rows(graph)
        report("converting", 0.3)
        model = _convert(openvino, graph.SerializeToString())
        del graph
        report("weights", 0.5)
        weights = attach_weights(model, stored, precision, scratch=folder)
        if is_compressed(precision):
            report("quantising", 0.6)
            model = self._quantized(model, precision)
        _finish(model, component, checkpoint)
        _save(model, path)
        del weights  # whose memory the graph shared until now

    def _quantized(self, model: "openvino.Model", precision: Precision) -> "openvino.Model":
        if precision != "hybrid":
            return compress_weights(model, precision)
        calibration = self.settings.calibration
        if calibration is None or calibration.folder is None:
            raise UsageError("openvino: got hybrid without recorded inputs, want a folder of them.")
        exact = {node.get_friendly_name() for node in sinusoids(model)}
        return quantize_hybrid(model, Path(calibration.folder), exact=exact)

    def export_assets(self, folder: Path) -> None:
        """Write each tokenizer as OpenVINO graphs beside its files, for OpenVINO GenAI."""
        openvino = _import_engine()
        tokenizers = import_optional("openvino_tokenizers", "transformers", extra="export")
        from transformers import CLIPTokenizerFast

        for name in ("tokenizer", "tokenizer_2"):
            if not (folder / name).is_dir():  # the refiner has no first tokenizer
                continue
            with warnings.catch_warnings():  # transformers' remarks on how tokenizers were saved
                warnings.simplefilter("ignore")
                tokenizer = CLIPTokenizerFast.from_pretrained(folder / name)
            graphs = tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
            for graph, file in zip(graphs, _TOKENIZER_FILES, strict=True):
                openvino.save_model(graph, folder / name / file)

    def precision_of(self, component: ComponentName, config: SdxlConfig) -> Precision:
        """What was asked for, but fp32 for a VAE that half precision overflows.

        Hybrid is of the U-Net, whose inputs are recorded; others store as int8.
        """
        precision = component_precision(component, config, self.settings.precision)
        return "int8" if precision == "hybrid" and component != "unet" else precision

    def describe(self, *paths: Path) -> ArtifactFacts:
        """Read a graph's inputs, outputs and weight dtypes."""
        (path,) = paths
        model = _read(path)
        histogram = Counter[str]()
        for constant in _weights(model):
            kind = constant.get_element_type()
            dtype = _DTYPES.get(kind.get_type_name()) or kind.to_dtype().name
            histogram[dtype] += math.prod(constant.get_output_shape(0))
        return ArtifactFacts(
            inputs=tuple(_port(port) for port in model.inputs),
            outputs=tuple(_port(port) for port in model.outputs),
            num_parameters=sum(histogram.values()),
            weight_dtypes=dict(sorted(histogram.items())),
            opset=None,
        )


def make_exporter(settings: ExportSettings) -> OpenVinoExporter:
    """An OpenVINO exporter with these settings.

    Raises:
        UsageError: a precision that weights are not stored in.
    """
    check_export_precision("openvino", settings.precision)
    if settings.precision == "hybrid" and settings.calibration is None:
        raise UsageError(
            "openvino: got precision 'hybrid' without prompts, want some to see activations in: "
            "--calibrate FILE, one prompt a line."
        )
    return OpenVinoExporter(settings=settings)


def _import_engine() -> ModuleType:
    return import_optional("openvino", extra="openvino")


def _convert(openvino: ModuleType, graph: bytes) -> "openvino.Model":
    """Read a traced graph and rewrite it as `openvino.convert_model` does.

    That function itself is not called because it sends usage statistics over the network.
    """
    from openvino._offline_transformations import apply_moc_transformations

    model = openvino.Core().read_model(graph, b"")
    apply_moc_transformations(model, cf=True)
    _fold_known_lengths(model)
    apply_moc_transformations(model, cf=True)  # what hangs on those lengths is constant now
    return model


def _fold_known_lengths(model: "openvino.Model") -> None:
    """Replace lengths that are read from a shape, though they are fixed, by constants.

    The tracer scales attention by a length of its query. Left as it is, that is computed at every
    run, and OpenVINO 2026.4 cannot read back what it keeps of such a network in a cache.
    """
    from openvino import opset13

    for node in model.get_ops():
        if node.get_type_name() != "Slice":
            continue
        source, start, stop, step, _axis = (value.get_node() for value in node.input_values())
        if source.get_type_name() != "ShapeOf":
            continue
        bounds = slice(*(int(bound.get_data()[0]) for bound in (start, stop, step)))
        lengths = list(source.input_value(0).get_partial_shape())[bounds]
        if all(length.is_static for length in lengths):
            known = np.array([length.get_length() for length in lengths], np.int64)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(opset13.constant(known).output(0))
    model.validate_nodes_and_infer_types()


def _finish(model: "openvino.Model", component: ComponentName, checkpoint: Checkpoint) -> None:
    """Give the graph the ports, names and remarks of optimum-intel's."""
    for port in (*model.inputs, *model.outputs):
        names = [name for name in port.get_names() if "/" not in name]
        port.get_tensor().set_names(set(names))
    if component == "unet":
        _take_integer_timestep(model)
    if component in ("vae_encoder", "vae_decoder") and checkpoint.config.force_upcast:
        model.set_rt_info(VAE_ACTIVATIONS_SCALE, ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"])
    model.set_rt_info("named as in the checkpoint", list(_NAMED_WEIGHTS))
    for index, node in enumerate(model.get_ordered_ops()):
        if _NUMBERED.match(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _take_integer_timestep(model: "openvino.Model") -> None:
    """Make the timestep what optimum-intel's graphs take, and GenAI insists on: int64, [1].

    Nothing is lost: a Convert follows at once, and triptych's runtime takes the fraction in
    before it (`runtimes/openvino.py`). The expansion to the batch is left out: the embedding is
    added to one of the whole batch anyway, and engines would expand in half precision.
    """
    from openvino import PartialShape, Type, opset13

    inner = model.input("timestep").get_node()
    expanded = inner
    while expanded.get_type_name() != "Broadcast":
        (reader,) = expanded.output(0).get_target_inputs()
        expanded = reader.get_node()
    outer = opset13.parameter(PartialShape([-1]), Type.i64, name="timestep")
    outer.output(0).get_tensor().set_names({"timestep"})
    converted = opset13.convert(outer, Type.f32)
    for reader in expanded.output(0).get_target_inputs():
        reader.replace_source_output(converted.output(0))
    parameters = model.get_parameters()
    position = model.get_parameter_index(inner)
    for parameter in parameters:
        model.remove_parameter(parameter)
    parameters[position] = outer
    model.add_parameters(parameters)
    model.validate_nodes_and_infer_types()


def _save(model: "openvino.Model", path: Path) -> None:
    """Write a graph, with two marks that OpenVINO has no Python call for.

    Sinusoids and sums of large groups are `precise`: else engines that compute in half precision
    round a timestep of 999 to 1000 before its sine is taken, and a mean to three digits. What
    widens weights is `decompression`: else the CPU widens them all when it opens the graph, and
    holds them twice.
    """
    openvino = _import_engine()
    names = [node.get_friendly_name() for node in model.get_ops()]
    marks = {
        **{node.get_friendly_name(): "precise" for node in sinusoids(model)},
        **{name: "precise" for name in names if BY_ROWS in name},
        **{name: "decompression" for name in names if name.endswith(WIDENED)},
    }
    openvino.save_model(model, path, compress_to_fp16=False)
    tree = ET.parse(path)  # noqa: S314  it was written just now
    for layer in tree.iter("layer"):
        mark = marks.get(layer.get("name", ""))
        if mark is not None:
            element = ET.Element("rt_info")
            ET.SubElement(element, "attribute", {"name": mark, "version": "0"})
            layer.insert(0 if layer.find("data") is None else 1, element)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _read(path: Path) -> "openvino.Model":
    openvino = _import_engine()
    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        raise BundleError(
            f"{path}: got {error}, want an OpenVINO graph and its weights, both whole. "
            "Copy the bundle again, or export it again."
        ) from error


def _weights(model: "openvino.Model") -> Iterator["openvino.op.Constant"]:
    """The constants that were learnt.

    Ours are named, also after OpenVINO has compressed them further. In graphs made by others,
    folding has taken many names away, so there it is every array of a dtype that weights have, but
    for scales and tables of sinusoids: a mask of a text encoder is counted with them.
    """
    named = model.has_rt_info(list(_NAMED_WEIGHTS))
    tables = {node.get_friendly_name() for node in sinusoids(model)}
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        name = node.get_friendly_name()
        is_array = (
            node.get_element_type().get_type_name() in _WEIGHT_DTYPES
            and math.prod(node.get_output_shape(0)) > 1
            and name not in tables
            and not name.endswith(("/scale", "/zero_point"))
        )
        is_named = name.removesuffix("_compressed").endswith((".weight", ".bias"))
        if is_named if named else is_array:
            yield node


def _port(port: "openvino.Output") -> TensorSpec:
    return TensorSpec(
        name=port.get_any_name(),
        dtype=port.get_element_type().to_dtype().name,
        shape=tuple(
            axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()
        ),
    )
