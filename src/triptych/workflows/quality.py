"""Whether pictures still say what their prompts said: a model judged by what it draws.

For models that draw the scenes of `triptych.scenes`: the one that comes along, and whatever was
made of it. Every prompt is drawn on every engine from the same noise and read by the judge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean, median
from typing import TypeAlias, final

from triptych.bundle.bundle import open_bundle
from triptych.errors import BackendError, UsageError
from triptych.parity.candidate import Candidate
from triptych.parity.image_metrics import image_psnr_db
from triptych.runtimes import runtimes_for
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.kept_open import kept_open
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.scenes.judge import Agreement, compare_scenes, read_scene
from triptych.scenes.scene import Scene, caption, held_out_scenes
from triptych.types import FormatName, ImageFloats, Picture, Precision
from triptych.workflows.check_candidates import find_candidates
from triptych.workflows.inspect import artifact_bytes

QualityReporter: TypeAlias = Callable[[str, float], None]
"""Told the stage in words and how far all of it is, 0 to 1."""

OnPicture: TypeAlias = Callable[[int, int, Picture], None]
"""Given every picture: the number of its row, that of its prompt, and the picture."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRequest:
    """What to judge, and how.

    Attributes:
        bundles: bundles or checkpoints.
        runtimes: the engines, each for the bundles that it reads; empty takes the first that
            reads a bundle's format.
        runtime_settings: what every engine is told.
        reference: a checkpoint to draw with, too: its pictures are what others are compared with.
        num_prompts: how many of the held-out scenes.
        num_inference_steps: of each picture, with the bundle's own scheduler.
        guidance_scale: of each picture.
    """

    bundles: Sequence[Path]
    runtimes: Sequence[str] = ()
    runtime_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    reference: Path | None = None
    num_prompts: int = 200
    num_inference_steps: int = 20
    guidance_scale: float = 5.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Adherence:
    """Shares of pictures, 0 to 1, that show what was asked for.

    Attributes:
        shape: the kind of shape.
        color: its colour.
        size: small or large.
        place: where it is.
        background: the colour of the background.
        whole: all of them.
    """

    shape: float
    color: float
    size: float
    place: float
    background: float
    whole: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRow:
    """One bundle on one engine.

    Attributes:
        path: the bundle.
        format: what it holds.
        runtime: the engine, with its device where one was named.
        precision: the class its U-Net is judged in by `check`.
        size_bytes: of all components.
        adherence: what the judge read.
        psnr_db: median over the pictures, of each with the reference's; None without a reference,
            infinite where half of the pictures are equal to it.
    """

    path: Path
    format: FormatName
    runtime: str
    precision: Precision
    size_bytes: int
    adherence: Adherence
    psnr_db: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """How well each draws.

    Attributes:
        prompts: what was drawn; picture n from seed n.
        num_inference_steps: of each picture.
        guidance_scale: of each picture.
        rows: the reference first, where there is one.
    """

    prompts: tuple[str, ...]
    num_inference_steps: int
    guidance_scale: float
    rows: tuple[QualityRow, ...]


def measure_quality(
    request: QualityRequest, *, report: QualityReporter, on_picture: OnPicture | None = None
) -> QualityReport:
    """Draw the same held-out prompts on every engine, and read the pictures.

    Args:
        request: what.
        report: told how far it is.
        on_picture: shown every picture.

    Raises:
        UsageError: no prompts, or more than there are; an engine that reads none of the bundles.
        BrokenInputError: a bundle is incomplete or corrupt.
        BackendError: an engine is missing.
        NonFiniteError: a component gave NaN or infinity.
    """
    scenes = held_out_scenes()
    if not 0 < request.num_prompts <= len(scenes):
        raise UsageError(
            f"num_prompts: got {request.num_prompts}, want 1 to {len(scenes)}: so many scenes are "
            "held out."
        )
    scenes = scenes[: request.num_prompts]
    candidates = _candidates(request)
    rows: list[QualityRow] = []
    reference: tuple[ImageFloats, ...] = ()
    for number, candidate in enumerate(candidates):
        images: list[ImageFloats] = []
        for index, image in enumerate(_draw(candidate, scenes, request)):
            images.append(image)
            if on_picture is not None:
                on_picture(number, index, pixels_from_image(image)[0])
            done = (number + len(images) / len(scenes)) / len(candidates)
            report(f"{candidate.name}: picture {len(images)} of {len(scenes)}", done)
        if request.reference is not None and not reference:
            reference = tuple(images)
        rows.append(_row(candidate, scenes, images, reference))
    return QualityReport(
        prompts=tuple(map(caption, scenes)),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        rows=tuple(rows),
    )


def adherence(agreements: Sequence[Agreement]) -> Adherence:
    """The shares of what was read as asked for."""
    shares: Mapping[str, float] = {
        part.name: fmean(bool(getattr(one, part.name)) for one in agreements)
        for part in fields(Agreement)
    }
    return Adherence(**shares, whole=fmean(one.is_whole for one in agreements))


def _candidates(request: QualityRequest) -> tuple[Candidate, ...]:
    """The reference, where there is one, and every bundle on its engine."""
    found: list[Candidate] = []
    if request.reference is not None:
        found.extend(find_candidates(request.reference, ["pytorch"], RuntimeSettings()))
    for path in request.bundles:
        able = runtimes_for(open_bundle(path).format)
        names = [name for name in request.runtimes if name.partition(":")[0] in able]
        # where none is able, all of them, for the error that says so
        found.extend(find_candidates(path, names or request.runtimes, request.runtime_settings))
    for candidate in found:  # before anything is drawn
        probe = candidate.runtime.probe()
        if not probe.installed:
            raise BackendError(f"{candidate.name}: got no such engine here. {probe.remedy}")
    return tuple(found)


def _draw(
    candidate: Candidate, scenes: Sequence[Scene], request: QualityRequest
) -> Iterator[ImageFloats]:
    """A picture of each scene, every one from the noise of its own seed."""
    bundle = candidate.bundle
    with kept_open(candidate.runtime) as runtime:
        for seed, scene in enumerate(scenes):
            settings = Settings(
                prompts=Prompts(prompt=(caption(scene),)),
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                seeds=(seed,),
            )
            prepared = prepare(bundle, runtime, settings, make_sampler=candidate.make_sampler)
            *_, last = denoise(bundle, runtime, prepared)
            yield decode(bundle, runtime, {"final": last.latents})["final"]


def _row(
    candidate: Candidate,
    scenes: Sequence[Scene],
    images: Sequence[ImageFloats],
    reference: Sequence[ImageFloats],
) -> QualityRow:
    readings = [read_scene(pixels_from_image(image)[0]) for image in images]
    pairs = zip(images, reference, strict=True) if reference else ()
    distances = [image_psnr_db(image, wanted) for image, wanted in pairs]
    bundle = candidate.bundle
    # The VAE's halves share their files in a checkpoint.
    sizes = {part.paths: artifact_bytes(part) for part in bundle.artifacts.values()}
    return QualityRow(
        path=bundle.folder,
        format=bundle.format,
        runtime=candidate.name,
        precision=candidate.precisions["unet"],
        size_bytes=sum(sizes.values()),
        adherence=adherence([compare_scenes(*pair) for pair in zip(scenes, readings, strict=True)]),
        psnr_db=median(distances) if distances else None,
    )
