"""What an exporter promises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, final, runtime_checkable

from triptych.models.checkpoint import Checkpoint
from triptych.models.sdxl import SdxlConfig
from triptych.tensors import TensorSpec
from triptych.types import (
    ComponentName,
    CoreMlAttention,
    DeploymentTarget,
    FormatName,
    PaletteBits,
    Precision,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMlSettings:
    """What a user can ask of the Core ML exporter.

    Attributes:
        attention: how the U-Net's attention is written.
        batch: rows of the U-Net: 2 for both halves of guidance, 1 for one half at a time.
        num_chunks: packages the U-Net is cut into, for devices that cannot load it whole.
        deployment_target: the oldest system that runs it.
        palette_bits: bits of a palette's index; None stores weights as they are.
    """

    attention: CoreMlAttention = "original"
    batch: Literal[1, 2] = 2
    num_chunks: Literal[1, 2] = 1
    deployment_target: DeploymentTarget = "macOS13"
    palette_bits: PaletteBits | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What activations are looked at in, to round them by their extremes.

    Attributes:
        prompts: a run of the model is made for each.
        num_inference_steps: of every run.
        folder: where the U-Net's recorded inputs are; None while they are not recorded.
    """

    prompts: tuple[str, ...]
    num_inference_steps: int = 20
    folder: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What a user can ask of any exporter.

    Attributes:
        precision: how weights are stored and the graph computes, where the component allows it.
        height_px: of the only pictures that a graph of fixed shapes makes, divisible by 8; None
            takes the size the model was trained at. For Core ML.
        width_px: as `height_px`.
        coreml: what only Core ML has.
        calibration: for hybrid, and nothing else.
        weights_in_place: leave weights in the checkpoint's files, which the bundle then links. For
            ONNX, of the checkpoint's own precision.
    """

    precision: Precision = "fp32"
    height_px: int | None = None
    width_px: int | None = None
    coreml: CoreMlSettings = field(default_factory=CoreMlSettings)
    calibration: CalibrationSettings | None = None
    weights_in_place: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFacts:
    """What an exported file says about itself.

    Attributes:
        inputs: the graph's inputs, in its own names and dtypes.
        outputs: the graph's outputs.
        num_parameters: weights, counted in elements.
        weight_dtypes: elements by stored dtype.
        opset: of an ONNX graph.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_parameters: int
    weight_dtypes: Mapping[str, int]
    opset: int | None


@runtime_checkable
class ExportReporter(Protocol):
    """Told how far an export is."""

    def __call__(self, stage: str, fraction: float) -> None:
        """`stage` is a word for people, `fraction` between 0 and 1 of the component."""


@runtime_checkable
class Exporter(Protocol):
    """Writes one format. A frozen dataclass: fields are settings."""

    @property
    def format(self) -> FormatName:
        """The format it writes."""

    @property
    def verified_on(self) -> str:
        """The engine that every export is run on before its bundle appears."""

    def export(
        self,
        checkpoint: Checkpoint,
        component: ComponentName,
        folder: Path,
        *,
        report: ExportReporter,
    ) -> None:
        """Write one component into a bundle that is being made, where its format keeps it.

        Args:
            checkpoint: where the weights are.
            component: which component.
            folder: the bundle; nothing of the component's network is in it yet.
            report: told how far it is.

        Raises:
            CheckpointError: the weights do not fit the config.
            MissingDependencyError: the export extra is not installed.
        """

    def export_assets(self, folder: Path) -> None:
        """Write what the format's own clients need besides the networks, if they need anything.

        Args:
            folder: the bundle; the checkpoint's tokenizers and configs are in it already.
        """

    def precision_of(self, component: ComponentName, config: SdxlConfig) -> Precision:
        """The class that one component is exported in, which sets how it is judged."""

    def describe(self, *paths: Path) -> ArtifactFacts:
        """Read what an artifact says about itself, without its weights.

        Args:
            paths: what an engine opens, in the order it runs.

        Raises:
            BundleError: the file is not readable, or its external data is not there in full.
            MissingDependencyError: the format's package is not installed.
        """
