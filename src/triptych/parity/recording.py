"""The reference's side of a check: what was fed, what came out, and the path of one run.

Recording and checking are apart, so that the reference runs once, here or on another machine, and
its networks are gone before a candidate's are opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, final

from triptych.parity.fingerprint import Fingerprint
from triptych.parity.floors import Floor
from triptych.parity.preconditions import Fact
from triptych.runtimes.base import Execution
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.inpaint import Inpaint
from triptych.sampling.noise import NoiseStream
from triptych.sampling.settings import Settings
from triptych.types import (
    ComponentName,
    ImageFloats,
    ImagePixels,
    Latents,
    NoisePred,
    Precision,
    TensorMap,
)

StageReporter: TypeAlias = Callable[[str], None]
"""Told what a recording or a check is doing now, in words for people."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCase:
    """One run of one component.

    Attributes:
        component: which.
        name: what is special about the feed.
        feed: its inputs.
        outputs: what the reference gave.
        has_halves: whether it is a guidance batch, the unconditional half first.
    """

    component: ComponentName
    name: str
    feed: TensorMap
    outputs: TensorMap
    has_halves: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything a candidate is compared with. Values only: no network, no file, no weights.

    Attributes:
        settings: what was asked for.
        preconditions: what was really used, to be found equal before numbers are compared.
        noise: the unit noise that the run started from.
        noise_stream: where the generators stood after it.
        conditioning: what the U-Net was told.
        inpaint: what a run with a mask keeps to; None for others.
        cases: component runs.
        latents: before each step and after the last: num_inference_steps + 1 of them.
        noise_preds: guided predictions, one a step.
        image: the run's picture as floats.
        pictures: of some steps and of the last, for people.
        precision: the arithmetic of the reference.
        execution: what its U-Net ran on.
        fingerprint: of the machine.
        created: ISO 8601, UTC.
        floors: what lower precisions cost in PyTorch, where that was measured.
    """

    settings: Settings
    preconditions: Mapping[str, Fact]
    noise: Latents
    noise_stream: NoiseStream
    conditioning: Conditioning
    inpaint: Inpaint | None
    cases: tuple[RecordedCase, ...]
    latents: tuple[Latents, ...]
    noise_preds: tuple[NoisePred, ...]
    image: ImageFloats
    pictures: Mapping[int, ImagePixels]
    precision: Precision
    execution: Execution
    fingerprint: Fingerprint
    created: str
    floors: tuple[Floor, ...] = ()

    @property
    def candidate_settings(self) -> Settings:
        """The same run for a candidate, from the noise itself: a seed is only a promise.

        Where a picture is encoded first, generators draw for that too, and the seeds are kept.
        """
        start = self.settings.start
        if start is not None and start.image is not None:
            return self.settings
        return replace(self.settings, noise=self.noise, noise_stream=self.noise_stream)
