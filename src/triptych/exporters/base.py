"""What an exporter promises."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from triptych.models.checkpoint import Checkpoint
from triptych.tensors import TensorSpec
from triptych.types import ComponentName, FormatName, Precision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What a user can ask of any exporter.

    Attributes:
        precision: how weights are stored and the graph computes, where the component allows it.
    """

    precision: Precision = "fp32"


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

    def export(
        self,
        checkpoint: Checkpoint,
        component: ComponentName,
        folder: Path,
        *,
        report: ExportReporter,
    ) -> None:
        """Write one component into an existing, empty folder.

        Raises:
            CheckpointError: the weights do not fit the config.
            MissingDependencyError: the export extra is not installed.
        """

    def export_assets(self, folder: Path) -> None:
        """Write what the format's own clients need besides the networks, if they need anything.

        Args:
            folder: the bundle; the checkpoint's tokenizers and configs are in it already.
        """

    def describe(self, path: Path) -> ArtifactFacts:
        """Read what an artifact says about itself, without its weights.

        Raises:
            BundleError: the file is not readable, or its external data is not there in full.
            MissingDependencyError: the format's package is not installed.
        """
