"""Core ML packages that keep Apple's contract, made on Linux and macOS alike.

Names, shapes and dtypes are those of apple/ml-stable-diffusion, so that its bundling script only
has to compile the packages on a Mac, and its Swift pipeline runs them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final, get_args

from triptych.bundle import apple
from triptych.bundle.layouts import component_bindings, graph_ports
from triptych.dependencies import import_coremltools, import_optional
from triptych.errors import UsageError
from triptych.exporters._coreml_convert import convert_module, temporary_files_in
from triptych.exporters._coreml_packages import (
    describe_packages,
    palettize,
    quantize,
    save_packages,
)
from triptych.exporters._memory import release_memory
from triptych.exporters.base import (
    ArtifactFacts,
    ExportReporter,
    ExportSettings,
)
from triptych.models.checkpoint import Checkpoint
from triptych.models.precisions import check_export_precision, is_compressed
from triptych.models.sdxl import SdxlConfig, component_precision, component_spec
from triptych.models.tokenizer_files import read_vocabulary
from triptych.tensors import PortSpecs, TensorSpec, axis_length
from triptych.types import (
    PRECISIONS,
    ComponentName,
    CoreMlAttention,
    DeploymentTarget,
    FormatName,
    PaletteBits,
    Precision,
)

if TYPE_CHECKING:
    import coremltools

_NO_PALETTE: tuple[ComponentName, ...] = ("vae_encoder", "vae_decoder", "preview_decoder")
"""The VAE keeps its weights in Apple's converter too; the preview decoder is smaller still."""

_HAVE_BLOCKS: tuple[DeploymentTarget, ...] = ("macOS15", "iOS18")
"""Systems that have constexpr_blockwise_shift_scale. Source: coremltools, defs/iOS18."""

_NEVER_HALF = ("input_ids", "timestep", "time_ids")
"""Inputs that stay float32 in a float16 program: half precision holds integers to 2048 only."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMlExporter:
    """Exports to Core ML.

    Attributes:
        settings: precision, size, and what only Core ML has.
    """

    settings: ExportSettings
    format: FormatName = "coreml"
    verified_on: str = "coreml-reference"

    def export(
        self,
        checkpoint: Checkpoint,
        component: ComponentName,
        folder: Path,
        *,
        report: ExportReporter,
    ) -> None:
        """Write a .mlpackage, or the two that a U-Net is cut into."""
        torch = import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")
        import_coremltools()
        from triptych.models.apple_modules import apple_module
        from triptych.models.modules import load_module

        report("loading", 0.0)
        config, options = checkpoint.config, self.settings.coreml
        ports = built_ports(component, config, self.settings)
        # coremltools wants float32 weights, and keeps its own beside them.
        module = load_module(checkpoint, component, dtype=torch.float32, scratch=folder)
        report("converting", 0.1)
        with temporary_files_in(folder):
            model = convert_module(
                apple_module(module, component, attention=options.attention),
                inputs=ports.inputs,
                outputs=ports.outputs,
                half=_computes_in_half(component, config, self.settings),
                deployment_target=options.deployment_target,
            )
            del module
            model = self._compressed(model, component, config, report=report)
            report("writing", 0.6)
            model.short_description = f"SDXL {component}"
            model.version = apple.model_version(checkpoint.folder)
            save_packages(model, self._paths(checkpoint, component, folder))
            del model
        release_memory()

    def _compressed(
        self,
        model: "coremltools.models.MLModel",
        component: ComponentName,
        config: SdxlConfig,
        *,
        report: ExportReporter,
    ) -> "coremltools.models.MLModel":
        bits, precision = self.settings.coreml.palette_bits, self._stored_as(component, config)
        if bits is not None and component not in _NO_PALETTE:
            report("palettizing", 0.4)
            return palettize(model, bits)
        if is_compressed(precision):
            report("quantising", 0.4)
            return quantize(model, precision)
        return model

    def export_assets(self, folder: Path) -> None:
        """Write the vocabulary that Apple's clients read, in the bundle's root."""
        source = next(
            path for name in ("tokenizer", "tokenizer_2") if (path := folder / name).is_dir()
        )
        vocabulary, merges = read_vocabulary(source)
        contents = (
            json.dumps(vocabulary, ensure_ascii=False),
            "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]),
        )
        for name, content in zip(apple.VOCABULARY_FILES, contents, strict=True):
            (folder / name).write_text(content, encoding="utf-8")

    def precision_of(self, component: ComponentName, config: SdxlConfig) -> Precision:
        """A palette's class where weights are in one, else what it computes in."""
        bits = self.settings.coreml.palette_bits
        if bits is not None and component not in _NO_PALETTE:
            return next(name for name in PRECISIONS if name == f"palette{bits}")
        return self._stored_as(component, config)

    def describe(self, *paths: Path) -> ArtifactFacts:
        """Read the ports of a network and how its weights are stored."""
        return describe_packages(paths)

    def _stored_as(self, component: ComponentName, config: SdxlConfig) -> Precision:
        return component_precision(component, config, self.settings.precision)

    def _paths(
        self, checkpoint: Checkpoint, component: ComponentName, folder: Path
    ) -> tuple[Path, ...]:
        version = apple.model_version(checkpoint.folder)
        submodule = apple.submodule_name(component, checkpoint.config)
        is_cut = component == "unet" and self.settings.coreml.num_chunks == 2
        chunks = (1, 2) if is_cut else (None,)
        return tuple(
            folder / apple.package_name(submodule, version=version, chunk=chunk) for chunk in chunks
        )


def make_exporter(settings: ExportSettings) -> CoreMlExporter:
    """A Core ML exporter with these settings.

    Raises:
        UsageError: settings that Core ML, or Apple's converter, does not have.
    """
    check_export_precision("coreml", settings.precision)
    options = settings.coreml
    for name, value, known in (
        ("attention", options.attention, get_args(CoreMlAttention)),
        ("batch", options.batch, (1, 2)),
        ("num_chunks", options.num_chunks, (1, 2)),
        ("deployment_target", options.deployment_target, get_args(DeploymentTarget)),
        ("palette_bits", options.palette_bits, (None, *get_args(PaletteBits))),
    ):
        if value not in known:
            wanted = ", ".join(str(choice) for choice in known)
            raise UsageError(f"coreml: got {name} {value!r}, want one of {wanted}.")
    _check_integers(settings)
    for name, length in (("height_px", settings.height_px), ("width_px", settings.width_px)):
        if length is not None and (length <= 0 or length % 8):
            raise UsageError(f"coreml: got {name} {length}, want a positive multiple of 8.")
    return CoreMlExporter(settings=settings)


def _check_integers(settings: ExportSettings) -> None:
    """Refuse integer weights where the oldest system has no such thing, or beside a palette."""
    options = settings.coreml
    if is_compressed(settings.precision) and options.palette_bits is not None:
        raise UsageError(
            f"coreml: got precision {settings.precision!r} with --palettize-bits, want one of "
            "them: a weight is an integer or an index. Beside palettes, fp32 or fp16 computes."
        )
    if settings.precision == "int4" and options.deployment_target not in _HAVE_BLOCKS:
        raise UsageError(
            f"coreml: got precision 'int4' for {options.deployment_target}, want one of "
            f"{', '.join(_HAVE_BLOCKS)}: older systems have no scales for blocks of weights. "
            f"Give --deployment-target {_HAVE_BLOCKS[0]}."
        )


def built_ports(
    component: ComponentName, config: SdxlConfig, settings: ExportSettings
) -> PortSpecs:
    """A component's inputs and outputs as they are built: Apple's names, lengths for every axis."""
    scale = config.vae_scale_factor
    trained = config.sample_size * scale
    axes = {
        "batch": settings.coreml.batch if component == "unet" else 1,
        "height": (settings.height_px or trained) // scale,
        "width": (settings.width_px or trained) // scale,
    }
    bindings = component_bindings(component, config, artifact_format="coreml")
    ports = graph_ports(component_spec(component, config), bindings)
    ports = apple.contract_ports(component, config, ports)
    half = _computes_in_half(component, config, settings)
    inputs, outputs = (
        tuple(replace(port, shape=_sized(port.shape, axes)) for port in side)
        for side in (ports.inputs, ports.outputs)
    )
    return PortSpecs(inputs=tuple(_with_dtype(port, half=half) for port in inputs), outputs=outputs)


def _computes_in_half(
    component: ComponentName, config: SdxlConfig, settings: ExportSettings
) -> bool:
    """Whether a program computes in float16, as all do whose weights are integers."""
    precision = component_precision(component, config, settings.precision)
    return precision == "fp16" or is_compressed(precision)


def _with_dtype(port: TensorSpec, *, half: bool) -> TensorSpec:
    keeps = not half or port.name in _NEVER_HALF
    return replace(port, dtype="float32" if keeps else "float16")


def _sized(shape: tuple[int | str, ...], axes: Mapping[str, int]) -> tuple[int | str, ...]:
    """A shape with lengths for its words."""
    lengths = [axis_length(axis, axes) for axis in shape]
    return tuple(
        axis if length is None else length for axis, length in zip(shape, lengths, strict=True)
    )
