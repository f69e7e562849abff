"""Which way of exporting gives the candidate's error: each is tried, and its error compared."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

import msgspec

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BackendError, UsageError, VerificationError
from triptych.exporters import exporter_names
from triptych.exporters._rounded_sinusoids import round_sinusoids
from triptych.exporters.base import CoreMlSettings, ExportSettings
from triptych.models.precisions import export_precisions, is_compressed, stored_words
from triptych.parity.bisect import Likeness, Section, Trial
from triptych.parity.candidate import Candidate
from triptych.parity.component_trial import (
    MeasuredComponent,
    measure_component,
    stopped_component,
    try_component,
)
from triptych.parity.likeness import find_likeness, most_alike_first
from triptych.parity.report import Row
from triptych.parity.swap import Side
from triptych.types import ComponentName, CoreMlAttention, PaletteBits
from triptych.workflows.bisect_ground import Ground, worst_component_row
from triptych.workflows.check_candidates import stored_precision
from triptych.workflows.export import ExportRequest, export_bundles

_FAR_LESS = 0.5
"""Part of the candidate's error below which a fresh export's is called far less."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Variation:
    """One way of exporting.

    Attributes:
        name: for people.
        settings: the exporter's.
        rounds_sinusoids: the sinusoids' constants are rounded to fp16 afterwards.
    """

    name: str
    settings: ExportSettings
    rounds_sinusoids: bool = False


def check_export(candidate: Candidate) -> None:
    """Refuse what was never exported.

    Raises:
        UsageError: it is a checkpoint.
    """
    if candidate.bundle.format == "diffusers":
        raise UsageError(
            f"export: got {candidate.bundle.folder} in {candidate.bundle.format} format, want a "
            f"bundle in {', '.join(exporter_names())} format."
        )


def export_sections(ground: Ground) -> tuple[Section, ...]:
    """Export the component again, in every way, each in a temporary folder of its own.

    Raises:
        BundleError: the component is not there, or cannot be read.
        BackendError: the engine or the device is missing.
        MissingDependencyError: the export extra is not installed.
    """
    component = ground.request.component
    ground.report(f"{component} of the bundle")
    measured = measure_component(
        ground.recording,
        ground.side,
        component,
        precision=ground.candidate.precisions[component],
        name="the bundle",
    )
    tried = [
        _measured_variation(ground, variation)
        for variation in _variations(ground.candidate.bundle, component)
    ]
    row = worst_component_row(ground, measured)
    likenesses = most_alike_first(find_likeness(measured, one) for one in tried)
    own = tried[0].trial
    return (
        Section(
            subject=component,
            row=row,
            self_difference=measured.self_difference,
            whole=measured.trial,
            trials=tuple(one.trial for one in tried),
            likenesses=likenesses,
            conclusion=_conclusion(row, measured.trial, own, likenesses[0]),
        ),
    )


def _conclusion(row: Row, whole: Trial, own: Trial, nearest: Likeness) -> str:
    if row.verdict in ("passed", "warned"):
        known = f"; its error is that of: {nearest.name}" if nearest.kind == "same" else ""
        return f"nothing to explain: the bundle keeps its limits{known}"
    match nearest.kind:
        case "same":
            return f"the bundle's error is that of: {nearest.name}"
        case "size":
            return (
                f"the bundle's error is as large as that of: {nearest.name}. It points elsewhere: "
                "another rounding of that kind, or chance"
            )
        case "other":
            return _unlike_text(whole, own)


def _unlike_text(whole: Trial, own: Trial) -> str:
    if math.isfinite(own.error) and own.error <= _FAR_LESS * whole.error:
        return (
            f"the file itself is at fault: exported afresh with the same settings ({own.name}) it "
            f"is at {own.error:.1e}. It holds other weights, or another exporter wrote it"
        )
    return "none of these: no variation has an error like the bundle's"


def _measured_variation(ground: Ground, variation: _Variation) -> MeasuredComponent:
    """Export it, run it, and leave nothing behind; or why that could not be."""
    component = ground.request.component
    artifact_format = ground.candidate.bundle.format
    ground.report(f"exporting: {variation.name}")
    with TemporaryDirectory(prefix="triptych-bisect-") as folder:
        try:
            bundle = _exported(ground, variation, Path(folder))
        except (VerificationError, BackendError) as error:
            return stopped_component(variation.name, str(error))
        if variation.rounds_sinusoids:
            round_sinusoids(bundle.artifact(component).path, artifact_format)
        ground.report(f"{component}: {variation.name}")
        return try_component(
            ground.recording,
            Side(bundle=bundle, runtime=ground.candidate.runtime),
            component,
            precision=ground.candidate.precisions[component],
            name=variation.name,
        )


def _exported(ground: Ground, variation: _Variation, folder: Path) -> Bundle:
    artifact_format = ground.candidate.bundle.format
    request = ExportRequest(
        checkpoint=ground.request.reference,
        output=folder,
        formats=[artifact_format],
        components=[ground.request.component],
        settings=variation.settings,
        variant=ground.request.variant,
        num_jobs=1,
        measure_steps=0,
    )
    return open_bundle(export_bundles(request)[artifact_format])


def _variations(bundle: Bundle, component: ComponentName) -> Iterator[_Variation]:
    """The bundle's own way first, then what differs from it in one thing."""
    own = _own_settings(bundle, component)
    # Those that store alike differ by nothing that is in the file; Core ML's integers need
    # other settings besides.
    others = (
        name
        for name in export_precisions(bundle.format)
        if name in stored_words(name) and not (bundle.format == "coreml" and is_compressed(name))
    )
    precisions = (own.precision, *others)
    for precision in dict.fromkeys(precisions):
        settings = replace(own, precision=precision)
        yield _Variation(name=_name(settings), settings=settings)
        if component == "unet" and precision == "fp16" and bundle.format != "coreml":
            yield _Variation(
                name="fp16 with the sinusoid in fp16", settings=settings, rounds_sinusoids=True
            )
    if bundle.format != "coreml":
        return
    if component == "unet":
        other: CoreMlAttention = (
            "original" if own.coreml.attention == "split-einsum" else "split-einsum"
        )
        settings = replace(own, coreml=replace(own.coreml, attention=other))
        yield _Variation(name=_name(settings), settings=settings)
    if own.coreml.palette_bits is not None:
        settings = replace(own, coreml=replace(own.coreml, palette_bits=None))
        yield _Variation(name=_name(settings), settings=settings)


def _own_settings(bundle: Bundle, component: ComponentName) -> ExportSettings:
    """How the manifest says that it was exported; without one, as far as the weights tell."""
    height_px, width_px = bundle.built_size_px or (None, None)
    if bundle.manifest is not None:
        coreml = msgspec.convert(dict(bundle.manifest.settings), CoreMlSettings)
        precision = bundle.manifest.precision
        return ExportSettings(
            # The prompts that a hybrid was calibrated on are not known.
            precision="int8" if precision == "hybrid" else precision,
            height_px=height_px,
            width_px=width_px,
            coreml=coreml,
        )
    stored = stored_precision(bundle.artifact(component))
    if stored.startswith("palette"):
        bits: PaletteBits = int(stored.removeprefix("palette"))  # type: ignore[assignment]  # names say
        return ExportSettings(precision="fp16", coreml=CoreMlSettings(palette_bits=bits))
    return ExportSettings(precision=stored)


def _name(settings: ExportSettings) -> str:
    """A way of exporting, for people: what is not as usual."""
    coreml = settings.coreml
    parts = [
        settings.precision,
        *([coreml.attention] if coreml.attention != "original" else []),
        *([f"{coreml.palette_bits} bit palettes"] if coreml.palette_bits is not None else []),
    ]
    return ", ".join(parts)
