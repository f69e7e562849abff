"""Say what a checkpoint or bundle holds, and what is missing or corrupt."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import msgspec

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.bundle.layouts import MANIFEST_NAME
from triptych.bundle.manifest import MeasuredParity, read_manifest
from triptych.bundle.store import find_damage
from triptych.errors import BrokenInputError, BundleError, MissingDependencyError, ScheduleError
from triptych.exporters import make_exporter
from triptych.models.checkpoint import Checkpoint
from triptych.models.composition import Source
from triptych.models.distilled import find_distillation
from triptych.models.hub import local_path
from triptych.models.tokenizer import load_tokenizer
from triptych.sampling.pipeline import TOKENIZER_FOLDERS
from triptych.sampling.scheduler_config import read_scheduler_config
from triptych.tensors import TensorSpec
from triptych.types import ComponentName
from triptych.workflows.contract import contract_problems

_STORED_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSummary:
    """One component as it is stored.

    Attributes:
        name: the component.
        num_parameters: weights, counted in elements; None where the file could not be read.
        weight_dtypes: elements by stored dtype.
        inputs: the graph's inputs, or the spec's for a checkpoint.
        outputs: the graph's outputs, or the spec's for a checkpoint.
        size_bytes: of its files. The VAE's halves share one file in a checkpoint.
        opset: of an ONNX graph.
        verified: relative L2 from PyTorch at export, the worst case; None without a manifest.
        problem: what is wrong with it.
    """

    name: ComponentName
    num_parameters: int | None
    weight_dtypes: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_bytes: int
    opset: int | None
    verified: float | None
    problem: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A checkpoint or bundle.

    Attributes:
        path: where.
        format: diffusers, onnx, ...
        origin: checkpoint, triptych, or foreign for a bundle without a manifest.
        kind: base, refiner or inpainting.
        precision: what the bundle was exported as; None without a manifest.
        toolchain: versions that made it.
        distilled: Turbo or LCM, as far as its scheduler tells; None for others.
        sources: what it was composed of, as its manifest or composition says.
        scheduler: its class, spacing and prediction type.
        components: what it holds.
        problems: what is missing or corrupt; empty when nothing is.
        parity: what compression costs, as it was measured at export.
    """

    path: Path
    format: str
    origin: str
    kind: str
    precision: str | None
    toolchain: dict[str, str]
    distilled: str | None
    sources: tuple[Source, ...]
    scheduler: dict[str, object]
    components: tuple[ComponentSummary, ...]
    problems: tuple[str, ...]
    parity: MeasuredParity | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values for one JSON document."""
        return {
            "path": str(self.path),
            "format": self.format,
            "origin": self.origin,
            "kind": self.kind,
            "precision": self.precision,
            "toolchain": self.toolchain,
            "distilled": self.distilled,
            "sources": msgspec.to_builtins(self.sources),
            "scheduler": self.scheduler,
            "components": [_component_json(component) for component in self.components],
            "problems": list(self.problems),
            "parity": None if self.parity is None else asdict(self.parity),
        }


def inspect_path(path: Path, *, variant: str | None = None) -> Summary:
    """Read what a folder says about itself and verify every hash it promises.

    Raises:
        BundleError: the folder is no bundle and no checkpoint.
        CheckpointError: it is a checkpoint, and its configs or weights are not whole.
    """
    path = local_path(path)
    damage: tuple[str, ...] = ()
    if (path / MANIFEST_NAME).is_file():
        damage = find_damage(path, read_manifest(path).files)
    try:
        bundle = open_bundle(path, variant=variant, check_sizes=False)
    except BrokenInputError as error:
        if damage:  # the error is only what the first damage led to
            raise BundleError(
                f"{path}: got {'; '.join(damage)}. Copy or export it again."
            ) from error
        raise
    components = tuple(_summarise(bundle, artifact) for artifact in bundle.artifacts.values())
    missing = [
        f"{name}: not in this folder"
        for name in bundle.config.components
        if name not in bundle.artifacts
    ]
    unreadable = [f"{part.name}: {part.problem}" for part in components if part.problem]
    breaches = [
        f"{name}: {problem}"
        for name, problems in contract_problems(bundle).items()
        for problem in problems
        if problem not in {part.problem for part in components}
    ]
    scheduler, scheduler_problem = _scheduler(path)
    manifest = bundle.manifest
    return Summary(
        path=path,
        format=bundle.format,
        origin=_origin(bundle),
        kind="inpainting" if bundle.config.is_inpainting else bundle.config.kind,
        precision=manifest.precision if manifest else None,
        toolchain=dict(manifest.toolchain) if manifest else {},
        distilled=None if scheduler_problem else _distilled(path),
        sources=_bundle_sources(bundle),
        scheduler=scheduler,
        components=components,
        problems=(
            *damage,
            *missing,
            *unreadable,
            *breaches,
            *scheduler_problem,
            *_tokenizer_problems(bundle),
        ),
        parity=manifest.parity if manifest else None,
    )


def _distilled(path: Path) -> str | None:
    found = find_distillation(path)
    return None if found is None else found.name


def _bundle_sources(bundle: Bundle) -> tuple[Source, ...]:
    if bundle.manifest is not None:
        return bundle.manifest.sources
    compositions = [
        artifact.checkpoint.composition
        for artifact in bundle.artifacts.values()
        if artifact.checkpoint is not None and artifact.checkpoint.composition is not None
    ]
    return compositions[0].sources if compositions else ()


def _origin(bundle: Bundle) -> str:
    if bundle.format == "diffusers":
        return "checkpoint"
    return "triptych" if bundle.manifest else "foreign"


def _summarise(bundle: Bundle, artifact: Artifact) -> ComponentSummary:
    if artifact.checkpoint is not None:
        return _summarise_weights(artifact, artifact.checkpoint)
    record = artifact.record
    try:
        facts = make_exporter(bundle.format).describe(*artifact.paths)
    except (BrokenInputError, MissingDependencyError) as error:
        return ComponentSummary(
            name=artifact.spec.name,
            num_parameters=None,
            weight_dtypes={},
            inputs=(),
            outputs=(),
            size_bytes=artifact_bytes(artifact),
            opset=None,
            verified=None,
            problem=str(error),
        )
    verified = [found.rel_l2 for found in record.verification] if record else []
    return ComponentSummary(
        name=artifact.spec.name,
        num_parameters=facts.num_parameters,
        weight_dtypes=dict(facts.weight_dtypes),
        inputs=facts.inputs,
        outputs=facts.outputs,
        size_bytes=artifact_bytes(artifact),
        opset=facts.opset,
        verified=max(verified, default=None),
    )


def _summarise_weights(artifact: Artifact, checkpoint: Checkpoint) -> ComponentSummary:
    histogram = Counter[str]()
    stored = checkpoint.stored_tensors(artifact.spec.name).values()
    for tensor in stored:
        histogram[_STORED_DTYPES.get(tensor.dtype, tensor.dtype)] += math.prod(tensor.shape)
    files = checkpoint.component_files(artifact.spec.name)
    if checkpoint.composition is None:
        size_bytes = sum(file.stat().st_size for file in files)
    else:  # one file may hold all components
        size_bytes = sum(tensor.size_bytes for tensor in stored)
    return ComponentSummary(
        name=artifact.spec.name,
        num_parameters=sum(histogram.values()),
        weight_dtypes=dict(histogram),
        inputs=artifact.spec.inputs,
        outputs=artifact.spec.outputs,
        size_bytes=size_bytes,
        opset=None,
        verified=None,
    )


def artifact_bytes(artifact: Artifact) -> int:
    """Of packages themselves; of single files, with all that lies beside them."""
    folders = [path if path.is_dir() else path.parent for path in artifact.paths]
    files = (file for folder in folders for file in folder.rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _scheduler(path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    try:
        config = read_scheduler_config(path / "scheduler" / "scheduler_config.json")
    except ScheduleError as error:
        return {}, (str(error),)
    return {
        "class": config.class_name,
        "timestep_spacing": config.timestep_spacing,
        "steps_offset": config.steps_offset,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "num_train_timesteps": config.num_train_timesteps,
        "prediction_type": config.prediction_type,
    }, ()


def _tokenizer_problems(bundle: Bundle) -> Iterator[str]:
    for component in bundle.config.text_encoders:
        try:
            load_tokenizer(bundle.folder / TOKENIZER_FOLDERS[component])
        except BrokenInputError as error:
            yield str(error)


def _component_json(component: ComponentSummary) -> dict[str, object]:
    return {
        "name": component.name,
        "num_parameters": component.num_parameters,
        "weight_dtypes": component.weight_dtypes,
        "inputs": [_tensor_json(tensor) for tensor in component.inputs],
        "outputs": [_tensor_json(tensor) for tensor in component.outputs],
        "size_bytes": component.size_bytes,
        "opset": component.opset,
        "verified_rel_l2": component.verified,
        "problem": component.problem,
    }


def _tensor_json(tensor: TensorSpec) -> dict[str, object]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
