"""triptych.json: what a bundle holds, how it was made, and the hash of every file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import msgspec

from triptych.bundle.layouts import MANIFEST_NAME
from triptych.errors import BundleError
from triptych.models.composition import Source
from triptych.types import ComponentName, FormatName, Precision

SCHEMA_VERSION = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a bundle.

    Attributes:
        path: relative to the bundle, with forward slashes.
        sha256: of its content, in hexadecimal.
        size_bytes: its length.
    """

    path: str
    sha256: str
    size_bytes: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One input or output of an artifact.

    Attributes:
        name: in triptych's vocabulary; None for outputs that triptych does not use.
        artifact_name: in the graph.
        dtype: NumPy's name of the graph's dtype.
        shape: the graph's axes: lengths, or words for dynamic ones.
    """

    name: str | None
    artifact_name: str
    dtype: str
    shape: tuple[int | str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationRecord:
    """How far one output was from PyTorch when the bundle was made.

    Attributes:
        case: the inputs it was tried on.
        tensor: the output.
        rel_l2: relative L2 distance to the float32 PyTorch component.
        max_abs: greatest absolute difference.
        limit: the relative L2 that would still have passed.
    """

    case: str
    tensor: str
    rel_l2: float
    max_abs: float
    limit: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRecord:
    """One exported component.

    Attributes:
        name: the component.
        file: what an engine opens, relative to the bundle.
        precision: the arithmetic its graph declares.
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        num_parameters: weights, counted in elements.
        weight_dtypes: elements by stored dtype.
        opset: of the ONNX graph; None in other formats.
        source_sha256: of each checkpoint file its weights came from.
        verification: the comparison with PyTorch made at export.
        chunks: where the network was cut, every part in the order they run; `file` is the first.
    """

    name: ComponentName
    file: str
    precision: Precision
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    num_parameters: int
    weight_dtypes: Mapping[str, int]
    opset: int | None
    source_sha256: Mapping[str, str]
    verification: tuple[VerificationRecord, ...]
    chunks: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far from PyTorch, the worst case of what was compared.

    Attributes:
        rel_l2: relative L2.
        psnr_db: decibels, peak max|expected|; of an image, the span of its values. None where
            nothing differed.
    """

    rel_l2: float
    psnr_db: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredParity:
    """What compression costs, measured when the bundle was made: `triptych check` gives the same.

    Attributes:
        engine: what ran the bundle.
        engine_version: its version.
        reference: what ran the checkpoint, in float32, with its version.
        prompts: of the run.
        num_inference_steps: of the run.
        guidance_scale: of the run.
        seeds: of its noise.
        height_px: of its picture.
        width_px: of its picture.
        components: each alone, on feeds of the reference's run and others.
        trajectory: the latents after the bundle's own run; None where it is not whole.
        worst_step: the step after which they were furthest.
        worst_step_rel_l2: how far that was.
        image: its picture.
        image_ssim: structural similarity of the picture, 1 for equal ones.
    """

    engine: str
    engine_version: str
    reference: str
    prompts: tuple[str, ...]
    num_inference_steps: int
    guidance_scale: float
    seeds: tuple[int, ...]
    height_px: int
    width_px: int
    components: Mapping[ComponentName, Distance]
    trajectory: Distance | None = None
    worst_step: int | None = None
    worst_step_rel_l2: float | None = None
    image: Distance | None = None
    image_ssim: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole manifest.

    Attributes:
        schema_version: of this file's layout; readers refuse a newer one.
        format: the bundle's format.
        kind: base or refiner.
        precision: what was asked for at export. A component may differ: see its record.
        created: ISO 8601, UTC.
        toolchain: versions of what made the bundle.
        components: one record each.
        files: every file but the manifest.
        settings: the exporter's other settings, by name.
        sources: what its checkpoint was composed of, the checkpoint itself first.
        parity: what compression costs, where weights were compressed and that was measured.
    """

    schema_version: int
    format: FormatName
    kind: str
    precision: Precision
    created: str
    toolchain: Mapping[str, str]
    components: tuple[ComponentRecord, ...]
    files: tuple[FileRecord, ...]
    settings: Mapping[str, int | str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    parity: MeasuredParity | None = None


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write a bundle's manifest, indented for people and stable for diffs."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_NAME).write_bytes(content + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest.

    Raises:
        BundleError: it is missing, of a newer schema, or not what the schema says.
    """
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{path}: got schema version {version}, want {SCHEMA_VERSION} or older. "
                "Upgrade triptych."
            )
        return msgspec.json.decode(content, type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: got {error}, want a triptych manifest.") from error


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    schema_version: int
