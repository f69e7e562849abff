"""Which bundles a check looks at, on which engines, and in which class each component is judged."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.bundle.layouts import BUNDLE_FORMATS, MANIFEST_NAME
from triptych.errors import BrokenInputError, MissingDependencyError, UsageError
from triptych.exporters import make_exporter
from triptych.parity.candidate import Candidate
from triptych.parity.limits import coarsest
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.types import PRECISIONS, ComponentName, Precision
from triptych.workflows.contract import contract_problems
from triptych.workflows.diffusers_schedulers import read_any_sampler
from triptych.workflows.runtime_choice import choose_runtime

_DTYPE_PRECISIONS: Mapping[str, Precision] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "int8",
    "uint8": "int8",
    "int4": "int4",
    "uint4": "int4",
    **{name: name for name in PRECISIONS if name.startswith("palette")},
}


_TOLD_PART = 0.25
"""Of the weights, from which on their class is the component's: embeddings, which palettes leave
alone, can be most of a text encoder."""


def find_candidates(
    path: Path, names: Sequence[str], settings: RuntimeSettings
) -> tuple[Candidate, ...]:
    """Every bundle with the engine that runs it.

    Args:
        path: a bundle; or a folder that holds one for each format.
        names: the engines, each with a device after a colon where it is not the settings';
            empty takes the first that reads each bundle's format.
        settings: what every engine is told.

    Raises:
        UsageError: an engine that reads none of the bundles, or is named twice.
        BundleError: a bundle is incomplete or corrupt.
    """
    bundles = _find_bundles(path)
    for bundle in bundles:
        bundle.check_files()
    if len(set(names)) != len(names):
        raise UsageError(f"runtime: got {', '.join(names)}, want each of them once.")
    if not names:
        return tuple(_candidate(bundle, None, settings) for bundle in bundles)
    if settings.device is not None and len(names) > 1:
        raise UsageError(
            f"device: got {settings.device!r} for {', '.join(names)}, want one for each: "
            "--runtime NAME:DEVICE."
        )
    return tuple(_named_candidate(name, bundles, settings) for name in names)


def declared_precisions(
    bundle: Bundle, settings: RuntimeSettings
) -> dict[ComponentName, Precision]:
    """The class each component is judged in: of its weights, or of the arithmetic asked for.

    Weights are what the manifest says, or what a good part of them are; the coarser of the two
    counts.
    """
    return {
        name: coarsest(
            [
                stored_precision(artifact)
                if artifact.record is None
                else artifact.record.precision,
                settings.precision or "fp32",
            ]
        )
        for name, artifact in bundle.artifacts.items()
    }


def stored_precision(artifact: Artifact) -> Precision:
    """The coarsest class that a good part of an artifact's weights are in, read from the file.

    Raises:
        BrokenInputError: weights of no dtype that is known.
    """
    if artifact.format == "diffusers":
        return "fp32"  # as the pytorch runtime loads them unless another is asked for
    return _class_of(_weight_dtypes(artifact), artifact)


def _weight_dtypes(artifact: Artifact) -> Mapping[str, int]:
    """Read from the file; where there is no package to read it with, as the manifest has them."""
    try:
        return make_exporter(artifact.format).describe(*artifact.paths).weight_dtypes
    except MissingDependencyError:
        if artifact.record is None:
            raise
        return artifact.record.weight_dtypes


def _class_of(dtypes: Mapping[str, int], artifact: Artifact) -> Precision:
    known = Counter[Precision]()
    for name, count in dtypes.items():
        if name in _DTYPE_PRECISIONS:
            known[_DTYPE_PRECISIONS[name]] += count
    if not known:
        raise BrokenInputError(
            f"{artifact.path}: got weights of {', '.join(dtypes) or 'no dtype'}, "
            f"want {', '.join(_DTYPE_PRECISIONS)}."
        )
    part = _TOLD_PART * known.total()
    return coarsest(word for word, count in known.items() if count >= part)


def _find_bundles(path: Path) -> tuple[Bundle, ...]:
    if (path / MANIFEST_NAME).is_file() or (path / "model_index.json").is_file():
        return (open_bundle(path),)
    inside = [
        path / name for name in BUNDLE_FORMATS if (path / name / "model_index.json").is_file()
    ]
    if not inside:
        return (open_bundle(path),)  # which says what it wants
    return tuple(open_bundle(folder) for folder in inside)


def _read_by(name: str, bundles: Sequence[Bundle]) -> Bundle:
    """The bundle for an engine: the first of its formats that is there."""
    formats = make_runtime(name).formats
    for wanted in formats:
        for bundle in bundles:
            if bundle.format == wanted:
                return bundle
    raise UsageError(
        f"runtime: got {name!r}, which reads {' and '.join(formats)}, for bundles in "
        f"{', '.join(bundle.format for bundle in bundles)} format."
    )


def _named_candidate(text: str, bundles: Sequence[Bundle], settings: RuntimeSettings) -> Candidate:
    name, _, device = text.partition(":")
    told = replace(settings, device=device) if device else settings
    return _candidate(_read_by(name, bundles), name, told)


def _candidate(bundle: Bundle, name: str | None, settings: RuntimeSettings) -> Candidate:
    return Candidate(
        bundle=bundle,
        runtime=choose_runtime(bundle, name, settings),
        precisions=declared_precisions(bundle, settings),
        stored=_stored_precisions(bundle),
        problems=contract_problems(bundle),
        make_sampler=read_any_sampler,
        device=settings.device,
    )


def _stored_precisions(bundle: Bundle) -> dict[ComponentName, Precision]:
    """Read back, where there is a manifest to compare with."""
    if bundle.manifest is None:
        return {}
    return {name: stored_precision(artifact) for name, artifact in bundle.artifacts.items()}
