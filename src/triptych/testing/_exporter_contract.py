"""What every exporter must do."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from triptych.bundle.bundle import Artifact, open_bundle
from triptych.bundle.layouts import ARTIFACT_FILES, component_bindings
from triptych.errors import BundleError
from triptych.exporters.base import ArtifactFacts, Exporter
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.feeds import component_cases
from triptych.models.prompts import prompt_ids
from triptych.models.sdxl import component_precision, component_spec
from triptych.parity.compare import compare, passes
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.tensors import TensorSpec
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
        first = folder / "first" / component
        fractions = _export(exporter, checkpoint, component, first)
        _check_fractions(fractions, where=where)
        _export(exporter, checkpoint, component, folder / "second" / component)
        _check_files(first, folder / "second" / component, exporter.format, where=where)
        dtype_wanted = component_precision(component, checkpoint.config, precision)
        artifact = _artifact(checkpoint, component, exporter.format, first)
        facts = exporter.describe(artifact.path)
        _check_ports(facts, artifact, where=where)
        _check_weights(facts, checkpoint, component, precision=dtype_wanted, where=where)
        _check_agreement(artifact, checkpoint, precision=dtype_wanted, where=where)
        _check_truncation(exporter, first, folder / "truncated" / component, where=where)
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


def _check_files(first: Path, second: Path, format_name: FormatName, *, where: str) -> None:
    others = [path.name for path in first.iterdir() if path.is_symlink() or not path.is_file()]
    require(not others, where, f"{', '.join(others)} in the folder", "plain files alone")
    file = ARTIFACT_FILES[format_name]
    require((first / file).is_file(), where, f"no {file}", "the file that engines open")
    once, twice = digests(first), digests(second)
    require(once == twice, where, "other bytes the second time", "the same each time")


def _check_ports(facts: ArtifactFacts, artifact: Artifact, *, where: str) -> None:
    """The graph's tensors have the layout's names and, at the border, the spec's dtypes."""
    spec, bindings = artifact.spec, artifact.bindings
    inputs = {port.name: port for port in facts.inputs}
    outputs = {port.name: port for port in facts.outputs}
    names = {binding.artifact_name for binding in bindings.inputs}
    require(set(inputs) == names, where, f"inputs {sorted(inputs)}", f"{sorted(names)}")
    missing = {binding.artifact_name for binding in bindings.outputs} - set(outputs)
    require(not missing, where, f"outputs {sorted(outputs)}", f"{sorted(missing)} among them")
    ports = {**inputs, **outputs}
    tensors = zip((*spec.inputs, *spec.outputs), (*bindings.inputs, *bindings.outputs), strict=True)
    for wanted, binding in tensors:
        port = ports[binding.artifact_name]
        require(_fits(port, wanted), f"{where} {port.name!r}", port.text(), wanted.text())


def _fits(port: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a port is the spec's. A scalar may be one element of a dynamic axis, and of int64.

    OpenVINO's clients give the timestep so; a runtime that reads it keeps the fraction.
    """
    if wanted.shape == ():
        return len(port.shape) <= 1 and port.dtype in (wanted.dtype, "int64")
    return port.dtype == wanted.dtype and len(port.shape) == len(wanted.shape)


def _check_weights(
    facts: ArtifactFacts,
    checkpoint: Checkpoint,
    component: ComponentName,
    *,
    precision: Precision,
    where: str,
) -> None:
    stored = checkpoint.stored_tensors(component).values()
    wanted = sum(math.prod(tensor.shape) for tensor in stored)
    got = facts.num_parameters
    require(got == wanted, where, f"{got} parameters", f"the checkpoint's {wanted}")
    dtypes = {_WEIGHT_DTYPES[precision]: wanted}
    found = dict(facts.weight_dtypes)
    require(found == dtypes, where, f"weights {found}", f"{dtypes} for {precision}")


def _check_agreement(
    artifact: Artifact, checkpoint: Checkpoint, *, precision: Precision, where: str
) -> None:
    """Every engine that reads the format agrees with PyTorch."""
    component = artifact.spec.name
    reference = open_bundle(checkpoint.folder, variant=checkpoint.variant)
    engines = [make_runtime(name) for name in runtimes_for(artifact.format)]
    installed = [engine for engine in engines if engine.probe().installed]
    require(bool(installed), where, "no engine that reads the format", "one installed")
    limit = COMPONENT_REL_L2[precision]
    input_ids = prompt_ids(checkpoint.folder, component)
    cases = list(component_cases(component, checkpoint.config, input_ids=input_ids))
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


def _check_truncation(exporter: Exporter, source: Path, folder: Path, *, where: str) -> None:
    """A copy in which any one file is empty, cut in half or a byte short is not described."""
    for file in sorted(source.iterdir()):
        for keep in (0, file.stat().st_size // 2, file.stat().st_size - 1):
            shutil.copytree(source, folder)
            with (folder / file.name).open("r+b") as stream:
                stream.truncate(keep)
            require_error(
                lambda: exporter.describe(folder / ARTIFACT_FILES[exporter.format]),
                BundleError,
                where=where,
                when=f"describing it with {keep} bytes of {file.name}",
            )
            shutil.rmtree(folder)


def _artifact(
    checkpoint: Checkpoint, component: ComponentName, format_name: FormatName, folder: Path
) -> Artifact:
    config = checkpoint.config
    return Artifact(
        spec=component_spec(component, config),
        format=format_name,
        path=folder / ARTIFACT_FILES[format_name],
        bindings=component_bindings(component, config, artifact_format=format_name),
    )
