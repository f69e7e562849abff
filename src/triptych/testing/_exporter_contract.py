"""What every exporter must do."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from triptych.bundle.bundle import Artifact, bundle_from_checkpoint, make_artifact
from triptych.bundle.layouts import artifact_paths
from triptych.errors import BundleError
from triptych.exporters.base import ArtifactFacts, Exporter
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.feeds import component_cases
from triptych.models.prompts import prompt_ids
from triptych.models.sdxl import component_precision
from triptych.parity.compare import compare, passes
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.tensors import TensorSpec, fixed_axes
from triptych.testing._requirements import digests, require, require_error
from triptych.types import ComponentName, FormatName, Precision

_WEIGHT_DTYPES: Mapping[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}


def check_exporter(
    exporter: Exporter, checkpoint_folder: Path, folder: Path, *, precision: Precision = "fp32"
) -> None:
    """Check one exporter on every component of a checkpoint.

    An engine that reads the format must be installed: an export that did not run is not checked.

    Args:
        exporter: the exporter, made with `precision` in its settings.
        checkpoint_folder: a checkpoint in diffusers layout.
        folder: an empty folder to write in. What was exported stays there.
        precision: what the exporter was asked for.

    Raises:
        CheckFailedError: a clause of the contract is broken; the message names it.
        TriptychError: the exporter, or the engine that runs its artifacts, could not run at all.
    """
    checkpoint = open_checkpoint(checkpoint_folder)
    before = digests(checkpoint_folder)
    for component in checkpoint.config.components:
        where = f"{exporter.format} exporter, {component}"
        first, second = folder / "first" / component, folder / "second" / component
        fractions = _export(exporter, checkpoint, component, first)
        _check_fractions(fractions, where=where)
        _export(exporter, checkpoint, component, second)
        artifact = _artifact(checkpoint, component, exporter.format, first, where=where)
        _check_files(first, second, where=where)
        wanted = exporter.precision_of(component, checkpoint.config)
        declared = component_precision(component, checkpoint.config, precision)
        require(wanted == declared, where, f"precision {wanted}", declared)
        facts = exporter.describe(*artifact.paths)
        _check_ports(facts, artifact, precision=wanted, where=where)
        _check_weights(facts, checkpoint, artifact, precision=wanted, where=where)
        _check_agreement(artifact, checkpoint, facts, precision=wanted, where=where)
        _check_truncation(exporter, artifact, first, folder / "truncated", where=where)
    after = digests(checkpoint_folder)
    require(after == before, f"{exporter.format} exporter", "a changed checkpoint", "it as it was")


def _export(
    exporter: Exporter, checkpoint: Checkpoint, component: ComponentName, folder: Path
) -> list[float]:
    """Export one component into a new folder; the progress it reported."""
    folder.mkdir(parents=True)
    fractions: list[float] = []

    def report(stage: str, fraction: float) -> None:
        require(bool(stage), f"{exporter.format} exporter", "a stage without a name", "a word")
        fractions.append(fraction)

    exporter.export(checkpoint, component, folder, report=report)
    return fractions


def _check_fractions(fractions: list[float], *, where: str) -> None:
    require(bool(fractions), where, "no report of progress", "at least one")
    inside = all(0 <= fraction <= 1 for fraction in fractions)
    require(inside, where, f"progress {fractions}", "fractions between 0 and 1")
    require(fractions == sorted(fractions), where, f"progress {fractions}", "no step back")


def _check_files(first: Path, second: Path, *, where: str) -> None:
    others = [
        path.name
        for path in first.rglob("*")
        if path.is_symlink() or path.name.startswith(".") or _is_empty_folder(path)
    ]
    require(not others, where, f"{', '.join(others)} in the bundle", "files of the format alone")
    once, twice = digests(first), digests(second)
    require(once == twice, where, "other bytes the second time", "the same each time")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_ports(
    facts: ArtifactFacts, artifact: Artifact, *, precision: Precision, where: str
) -> None:
    """The graph's tensors have the layout's names and shapes and, at the border, the dtypes."""
    ports = artifact.ports
    inputs = {port.name: port for port in facts.inputs}
    outputs = {port.name: port for port in facts.outputs}
    names = {port.name for port in ports.inputs}
    require(set(inputs) == names, where, f"inputs {sorted(inputs)}", f"{sorted(names)}")
    missing = {port.name for port in ports.outputs} - set(outputs)
    require(not missing, where, f"outputs {sorted(outputs)}", f"{sorted(missing)} among them")
    found = {**inputs, **outputs}
    for wanted in (*ports.inputs, *ports.outputs):
        port = found[wanted.name]
        fits = _fits(port, wanted, format_name=artifact.format, precision=precision)
        require(fits, f"{where} {port.name!r}", port.text(), wanted.text())


def _fits(
    port: TensorSpec, wanted: TensorSpec, *, format_name: FormatName, precision: Precision
) -> bool:
    """Whether a port is the spec's, but for what the format's own clients want otherwise.

    OpenVINO's give the timestep as one int64 of a dynamic axis; a runtime that reads it keeps the
    fraction. Core ML has no int64, and halves where its programs compute in them.
    """
    if wanted.shape == ():
        return len(port.shape) <= 1 and port.dtype in (wanted.dtype, "int64")
    dtypes = {wanted.dtype}
    if format_name == "coreml":
        dtypes = {"float32"} if precision == "fp32" else {"float32", "float16"}
    return port.dtype in dtypes and len(port.shape) == len(wanted.shape)


def _check_weights(
    facts: ArtifactFacts,
    checkpoint: Checkpoint,
    artifact: Artifact,
    *,
    precision: Precision,
    where: str,
) -> None:
    """Every weight is there, in the dtype that was asked for.

    coremltools adds zero biases and tables, keeps one of several equal weights, and leaves
    frequencies in float32; so there a few more or less are allowed.
    """
    slack = 0.05 if artifact.format == "coreml" else 0.0
    stored = checkpoint.stored_tensors(artifact.spec.name).values()
    wanted = sum(math.prod(tensor.shape) for tensor in stored)
    got = facts.num_parameters
    complete = abs(got - wanted) <= slack * wanted
    require(complete, where, f"{got} parameters", f"the checkpoint's {wanted}")
    dtype = _WEIGHT_DTYPES[precision]
    others = got - facts.weight_dtypes.get(dtype, 0)
    found = dict(facts.weight_dtypes)
    require(others <= slack * wanted, where, f"weights {found}", f"{dtype} for {precision}")


def _check_agreement(
    artifact: Artifact,
    checkpoint: Checkpoint,
    facts: ArtifactFacts,
    *,
    precision: Precision,
    where: str,
) -> None:
    """Every engine that reads the format agrees with PyTorch."""
    component = artifact.spec.name
    reference = bundle_from_checkpoint(checkpoint)
    engines = [make_runtime(name) for name in runtimes_for(artifact.format)]
    installed = [engine for engine in engines if engine.probe().installed]
    require(bool(installed), where, "no engine that reads the format", "one installed")
    limit = COMPONENT_REL_L2[precision]
    input_ids = prompt_ids(checkpoint.folder, component)
    axes = fixed_axes(artifact.ports.inputs, {port.name: port.shape for port in facts.inputs})
    cases = list(
        component_cases(component, checkpoint.config, input_ids=input_ids, fixed_axes=axes)
    )
    with open_session(make_runtime("pytorch"), reference, component) as session:
        expected = [session.run(case.feed) for case in cases]
    for engine in installed:
        with CheckedSession(engine.open(artifact), artifact) as session:
            actual = [session.run(case.feed) for case in cases]
        for case, got, wanted in zip(cases, actual, expected, strict=True):
            for name, value in wanted.items():
                found = compare(got[name], value, component=component, tensor=name)
                require(
                    passes(found, rel_l2_limit=limit),
                    f"{where} {name!r} on {case.name} in {engine.name}",
                    f"relative L2 {found.rel_l2:.2e} from PyTorch",
                    f"at most {limit:.0e} for {precision}",
                )


def _check_truncation(
    exporter: Exporter, artifact: Artifact, source: Path, folder: Path, *, where: str
) -> None:
    """A copy in which any one file is empty, cut in half or a byte short is not described."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        for keep in (0, file.stat().st_size // 2, file.stat().st_size - 1):
            shutil.copytree(source, folder)
            with (folder / file.relative_to(source)).open("r+b") as stream:
                stream.truncate(keep)
            copies = [folder / path.relative_to(source) for path in artifact.paths]
            require_error(
                lambda copies=copies: exporter.describe(*copies),  # type: ignore[misc]  # binds now
                BundleError,
                where=where,
                when=f"describing it with {keep} bytes of {file.name}",
            )
            shutil.rmtree(folder)


def _artifact(
    checkpoint: Checkpoint,
    component: ComponentName,
    format_name: FormatName,
    folder: Path,
    *,
    where: str,
) -> Artifact:
    config = checkpoint.config
    paths = artifact_paths(folder, component, config, artifact_format=format_name)
    require(bool(paths), where, "no file that engines open", "it where the layout has it")
    return make_artifact(component, config, paths=paths, artifact_format=format_name)
