"""Bisect a candidate's error: which component, pass, precision or export option carries it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import triptych
from triptych.parity.bisect import Bisected, BisectReport, Section
from triptych.parity.candidate import Candidate
from triptych.parity.fingerprint import take_fingerprint
from triptych.parity.recording import StageReporter
from triptych.parity.report import overall
from triptych.workflows.bisect_components import component_sections
from triptych.workflows.bisect_export import check_export, export_sections
from triptych.workflows.bisect_ground import BisectRequest, Ground, find_candidate, make_ground
from triptych.workflows.bisect_passes import check_passes, pass_sections
from triptych.workflows.bisect_precision import check_precision, precision_sections


def _takes_any(_: Candidate) -> None:
    """Every engine's components can be swapped."""


_CHECKS: Mapping[Bisected, Callable[[Candidate], None]] = {
    "components": _takes_any,
    "passes": check_passes,
    "precision": check_precision,
    "export": check_export,
}
"""Each refuses a candidate that cannot be bisected so, before anything runs."""

_SECTIONS: Mapping[Bisected, Callable[[Ground], tuple[Section, ...]]] = {
    "components": component_sections,
    "passes": pass_sections,
    "precision": precision_sections,
    "export": export_sections,
}


def bisect_bundle(request: BisectRequest, *, report: StageReporter) -> BisectReport:
    """Find what carries how much of a candidate's error.

    Everything is measured whether or not the candidate keeps its limits; the verdict says which.

    Raises:
        UsageError: an engine that cannot be bisected so, several bundles, or a golden.
        BundleError: the bundle is incomplete or corrupt.
        IncomparableError: candidate and reference are not the same model, schedule or noise.
        BackendError: an engine or a device is missing.
        NonFiniteError: the reference itself gives NaN or infinity.
    """
    report("opening")
    candidate = find_candidate(request)
    _CHECKS[request.what](candidate)
    if request.what != "components":
        candidate.bundle.artifact(request.component)  # before anything runs
    ground = make_ground(request, candidate, report=report)
    sections = _SECTIONS[request.what](ground)
    settings = ground.recording.settings
    return BisectReport(
        triptych=triptych.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        what=request.what,
        runtime=candidate.runtime.name,
        bundle=str(request.bundle),
        reference=str(request.reference),
        fingerprint=take_fingerprint(),
        settings={
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "seeds": settings.seeds,
        },
        sections=sections,
        verdict=overall(section.row.verdict for section in sections),
    )
