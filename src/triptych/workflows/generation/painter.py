"""Making a dataset's pictures: one model kept open, a run for each picture, files as it goes on."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, final

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.kept_open import kept_open
from triptych.sampling.decode import check_not_blank, pixels_from_image
from triptych.sampling.loop import StepEvent
from triptych.sampling.pipeline import Encoder, decode, denoise, encode, prepare
from triptych.sampling.preview import preview_pixels
from triptych.sampling.prompt_embeddings import PromptEmbeddings, embeddings_from_encoded
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import ImagePixels, Latents
from triptych.workflows.diffusers_schedulers import read_any_sampler
from triptych.workflows.generation.plan import Work
from triptych.workflows.generation.shards import WHOLE, Shard
from triptych.workflows.generation.writer import (
    DatasetWriter,
    Picture,
    WriterSettings,
    open_writer,
)
from triptych.workflows.prompt_cache import PromptCache
from triptych.workflows.runtime_choice import choose_runtime

SavedBy: TypeAlias = Literal["vae", "linear"]
"""vae: pictures. linear: the quick map of a latent cell to a pixel, for a look at a dataset."""

_DECODING_AHEAD = 2
"""Pictures whose files may be waiting while the sampler goes on; bounds the memory."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PaintJob:
    """What a painter needs besides its work; the same for every worker of a dataset.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        variant: the weight variant, for a checkpoint.
        runtime: the engine; None takes the one that reads the bundle's format.
        runtime_settings: device, precision, threads.
        settings: of every run; its prompts and seeds are the work's.
        negative_prompt: for every run; None where there is none.
        output: the dataset's folder, locked to the settings.
        writing: how files are written.
        saved_by: what makes pictures of latents.
        shard: which part of the dataset it is; for the ledger's name.
        prompt_cache: a folder where encoded prompts are kept and looked for; None keeps none.
        keep_loaded: keep the text encoders open between prompts. Otherwise they are opened for
            each, and closed before its pictures are made.
    """

    bundle: Path
    variant: str | None = None
    runtime: str | None = None
    runtime_settings: RuntimeSettings
    settings: Settings
    negative_prompt: str | None = None
    output: Path
    writing: WriterSettings
    saved_by: SavedBy = "vae"
    shard: Shard = WHOLE
    prompt_cache: Path | None = None
    keep_loaded: bool = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """Work whose files are in place.

    Attributes:
        work: what was to do.
        num_steps: evaluations that the sampler took for it.
        seconds: from its first step to its last.
    """

    work: Work
    num_steps: int
    seconds: float


@contextlib.contextmanager
def open_painter(job: PaintJob) -> Iterator["Painter"]:
    """Open a model and a writer; close both when the last file is in place.

    Raises:
        BundleError: the bundle is incomplete.
        BackendError: the engine or device is missing.
        OutputError: the folder cannot be written to.
    """
    bundle = open_bundle(job.bundle, variant=job.variant)
    engine = choose_runtime(bundle, job.runtime, job.runtime_settings)
    with (
        kept_open(engine) as runtime,
        open_writer(job.output, job.writing, shard=job.shard) as writer,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder") as decoder,
    ):
        yield Painter(
            job,
            bundle,
            runtime,
            writer,
            decoder,
            encoding_runtime=runtime if job.keep_loaded else engine,
        )


@final
class Painter:
    """Does work one by one. Made by `open_painter`."""

    def __init__(
        self,
        job: PaintJob,
        bundle: Bundle,
        runtime: Runtime,
        writer: DatasetWriter,
        decoder: ThreadPoolExecutor,
        *,
        encoding_runtime: Runtime,
    ) -> None:
        self._job = job
        self._bundle = bundle
        self._runtime = runtime
        self._encoding_runtime = encoding_runtime
        self._writer = writer
        self._decoder = decoder
        self._pending: deque[Future[Painted]] = deque()
        self._encode: Encoder = encode
        if job.prompt_cache is not None:
            cache = PromptCache(folder=job.prompt_cache, settings=job.runtime_settings)
            self._encode = cache.encode
        self._encoded: tuple[str, PromptEmbeddings] | None = None

    def paint(self, work: Work) -> tuple[Painted, ...]:
        """Run the sampler as far as the work needs; its files follow while the next one runs.

        Returns:
            Work that is done by now, in order: often that of earlier calls.

        Raises:
            NonFiniteError: a component gave NaN or infinity.
            BlankPictureError: a picture is of one colour.
            OutputError: the disk is full, or may not be written to.
        """
        begun = time.perf_counter()
        latents: dict[int, Latents] = {}
        num_steps = 0
        for event in self._events(work):
            num_steps = event.index + 1
            if num_steps in work.reasons:
                latents[num_steps] = event.latents.copy()
            if num_steps == work.num_steps:
                break
        seconds = time.perf_counter() - begun
        done = Painted(work=work, num_steps=num_steps, seconds=seconds)
        self._pending.append(self._decoder.submit(self._saved, done, latents))
        return tuple(self._finished(at_most=_DECODING_AHEAD))

    def finish(self) -> tuple[Painted, ...]:
        """Wait for the files of everything that was painted.

        Raises:
            As `paint`.
        """
        return tuple(self._finished(at_most=0))

    def _events(self, work: Work) -> Iterator[StepEvent]:
        settings = replace(
            self._job.settings, prompts=self._embeddings(work.unit.prompt), seeds=(work.unit.seed,)
        )
        prepared = prepare(self._bundle, self._runtime, settings, make_sampler=read_any_sampler)
        return denoise(self._bundle, self._runtime, prepared)

    def _embeddings(self, prompt: str) -> PromptEmbeddings:
        """The prompt through the text encoders; the images of one prompt share it."""
        if self._encoded is None or self._encoded[0] != prompt:
            negative = self._job.negative_prompt
            prompts = Prompts(
                prompt=(prompt,), negative_prompt=None if negative is None else (negative,)
            )
            encoded, _ = self._encode(self._bundle, self._encoding_runtime, prompts)
            self._encoded = (prompt, embeddings_from_encoded(encoded))
        return self._encoded[1]

    def _saved(self, done: Painted, latents: Mapping[int, Latents]) -> Painted:
        """Decode and write; a picture at a time, so that its bytes do not depend on the others."""
        unit, seconds = done.work.unit, done.seconds
        self._writer.save(
            [
                Picture(unit=unit, step=step, pixels=self._pixels(kept)[0], seconds=seconds)
                for step, kept in latents.items()
            ]
        )
        return done

    def _pixels(self, latents: Latents) -> ImagePixels:
        if self._job.saved_by == "linear":
            return preview_pixels(latents)
        image = decode(self._bundle, self._runtime, {"": latents})[""]
        check_not_blank(image)
        return pixels_from_image(image)

    def _finished(self, *, at_most: int) -> Iterator[Painted]:
        """What is done, until so many are left waiting."""
        while self._pending and (len(self._pending) > at_most or self._pending[0].done()):
            yield self._pending.popleft().result()
