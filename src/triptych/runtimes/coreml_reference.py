"""Core ML programs on any system, operator by operator: what the file says, without a Mac.

It certifies the program: the conversion, the weights and their compression, the cut into chunks,
the names and shapes at the border. It does not certify Apple's runtime, which fuses operators, sums
in its own order and has its own arithmetic on the Neural Engine. Reports name it
`coreml-reference`, never Core ML.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from triptych.bundle.bundle import Artifact
from triptych.dependencies import import_coremltools, import_optional
from triptych.errors import BackendError, MissingDependencyError, UsageError
from triptych.mil.facts import declared_precision, fed_inputs
from triptych.runtimes.base import Execution, Probe, RuntimeSettings, absent_probe
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, TensorMap

if TYPE_CHECKING:
    from triptych.mil.program import Program
    from triptych.runtimes._mil.values import Mode

_DEVICE = "cpu"


@final
class CoreMlReferenceSession:
    """One program, or several that follow one another, each fed what those before it computed."""

    def __init__(
        self, programs: "Sequence[Program]", *, mode: "Mode", execution: Execution
    ) -> None:
        self._programs: tuple[Program, ...] = tuple(programs)
        self._mode: Mode = mode
        self.execution = execution
        self.inputs = tuple(_as_fed(spec, mode) for spec in fed_inputs(programs))
        self.outputs = tuple(_as_fed(spec, mode) for spec in programs[-1].outputs)

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs; the first operator that makes NaN or infinity is an error."""
        from triptych.runtimes._mil.interpreter import run

        if not self._programs:
            raise BackendError("coreml-reference: got a run on a closed session. Open it again.")
        known = dict(feed)
        for program in self._programs:
            known |= run(
                program, {spec.name: known[spec.name] for spec in program.inputs}, mode=self._mode
            )
        return {name: known[name] for name in outputs}

    def close(self) -> None:
        """Release the mapped weights."""
        self._programs = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMlReference:
    """The reference interpreter.

    Attributes:
        settings: `precision` fp32 computes in float32 throughout, whatever the program declares;
            left out, every result is rounded to the dtype that the program declares for it.
    """

    settings: RuntimeSettings
    name: str = "coreml-reference"
    formats: tuple[FormatName, ...] = ("coreml",)

    def open(self, artifact: Artifact) -> CoreMlReferenceSession:
        """Read the packages; weights stay in their files until an operator needs them."""
        _import_engine()
        from triptych.runtimes._mil.interpreter import open_program

        self._check_settings()
        programs = [open_program(path) for path in artifact.paths]
        declared = declared_precision(programs)
        asked = self.settings.precision
        mode: Mode = "declared" if asked is None else "fp32"
        return CoreMlReferenceSession(
            programs,
            mode=mode,
            execution=Execution(
                runtime=self.name,
                version=importlib.metadata.version("triptych"),
                device=_DEVICE,
                precision=asked or declared,
                declared_precision=asked or declared,
                details={
                    "numeric_mode": mode,
                    "program_declares": declared,
                    "certifies": "the program, not Apple's runtime",
                },
            ),
        )

    def probe(self) -> Probe:
        """Versions of what it reads programs and computes with."""
        try:
            _import_engine()
        except MissingDependencyError as error:
            return absent_probe(self.name, error)
        return Probe(
            runtime=self.name,
            installed=True,
            versions={name: importlib.metadata.version(name) for name in ("coremltools", "torch")},
            devices=(_DEVICE,),
            precision={_DEVICE: "as the program declares; fp32 on request"},
            remedy="",
        )

    def _check_settings(self) -> None:
        settings = self.settings
        if settings.device not in (None, _DEVICE):
            raise BackendError(
                f"coreml-reference: got no device {settings.device!r}, want {_DEVICE}."
            )
        if settings.precision not in (None, "fp32"):
            raise UsageError(
                f"coreml-reference: got --precision {settings.precision}, want fp32, or nothing to "
                "compute in what the program declares."
            )
        if settings.cache_dir is not None:
            raise UsageError(
                "coreml-reference: got --cache-dir, but it keeps no cache. Leave it out."
            )
        if settings.num_threads is not None:
            torch = import_optional("torch", extra="export")
            torch.set_num_threads(settings.num_threads)


def make_runtime(settings: RuntimeSettings) -> CoreMlReference:
    """The interpreter with these settings."""
    return CoreMlReference(settings=settings)


def _import_engine() -> None:
    import_coremltools()
    import_optional("torch", extra="export")


def _as_fed(spec: TensorSpec, mode: "Mode") -> TensorSpec:
    """A port as the mode has it: in `fp32`, halves are widened at the border too."""
    widened = mode == "fp32" and spec.dtype == "float16"
    return replace(spec, dtype="float32") if widened else spec
