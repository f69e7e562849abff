"""The picture at the end of a run, compared as floats; and those on its way, for people."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from triptych.errors import BackendError, BlankPictureError, NonFiniteError, UsageError
from triptych.parity.candidate import Candidate
from triptych.parity.compare import compare
from triptych.parity.image_metrics import image_psnr_db, ssim
from triptych.parity.recording import Recording
from triptych.parity.report import Row, Stage, with_comparison
from triptych.parity.trajectory import Path
from triptych.sampling.decode import check_not_blank, pixels_from_image
from triptych.sampling.pipeline import decode
from triptych.types import ImageFloats, ImagePixels

ImageMetric: TypeAlias = Callable[[ImageFloats, ImageFloats], float]
"""Of the candidate's picture and the reference's, in -1 to 1: LPIPS, CLIP, or whatever a user has.
It is told, and decides nothing."""


def picture_rows(
    recording: Recording,
    candidate: Candidate,
    path: Path,
    *,
    every_picture: bool,
    metrics: Mapping[str, ImageMetric],
    ran: str,
) -> tuple[tuple[Row, ...], Mapping[int, ImagePixels]]:
    """The last picture's row, and the pixels of all that were decoded, by step.

    Args:
        recording: the reference.
        candidate: whose decoder runs.
        path: what its run went through.
        every_picture: decode those that the recording has too, not the last alone.
        metrics: others to measure, by name.
        ran: what the engine says it computed in.
    """
    last = len(path.latents) - 1
    steps = sorted({*recording.pictures, last}) if every_picture else [last]
    about = Row(
        stage="image",
        component="vae_decoder",
        case="the run's picture",
        step=last,
        precision=candidate.run_precision,
        ran=ran,
    )
    latents = {str(step): path.latents[step] for step in steps}
    try:
        images = decode(candidate.bundle, candidate.runtime, latents)
    except (NonFiniteError, BackendError) as error:
        stage: Stage = "finiteness" if isinstance(error, NonFiniteError) else "image"
        failed = replace(about, stage=stage, verdict="failed", reason=str(error))
        return (failed,), {}
    pixels = {step: pixels_from_image(images[str(step)]) for step in steps}
    return (image_row(about, images[str(last)], recording.image, metrics=metrics),), pixels


def image_row(
    about: Row,
    actual: ImageFloats,
    expected: ImageFloats,
    *,
    metrics: Mapping[str, ImageMetric] | None = None,
) -> Row:
    """One picture against the reference's; one of a single colour has failed.

    Args:
        about: the row without numbers.
        actual: the candidate's.
        expected: the reference's.
        metrics: others to measure, by name.

    Raises:
        UsageError: one of those raises, or returns no number.
    """
    found = compare(actual, expected, component="vae_decoder", tensor="image")
    row = replace(
        with_comparison(about, found),
        psnr_db=image_psnr_db(actual, expected),
        ssim=ssim(actual, expected),
        metrics={
            name: _measured(name, metric, actual, expected)
            for name, metric in (metrics or {}).items()
        },
    )
    blank = _blankness(actual)
    if blank and not _blankness(expected):
        return replace(row, rel_l2=None, verdict="failed", reason=blank)
    return row


def _measured(name: str, metric: ImageMetric, actual: ImageFloats, expected: ImageFloats) -> float:
    try:
        return float(metric(actual, expected))
    except Exception as error:  # whatever somebody's function does
        raise UsageError(
            f"image metric {name}: it raised {type(error).__name__}: {error}. It is given two "
            "pictures, float32 [batch, 3, height, width] from -1 to 1, and must return a number."
        ) from error


def _blankness(image: ImageFloats) -> str:
    """What is to be said of a picture of one colour; nothing of any other."""
    try:
        check_not_blank(image)
    except BlankPictureError as error:
        return str(error)
    return ""
