"""How often the U-Net runs, and on how many rows: the arithmetic that the guides promise.

A row is a picture's worth of work: a guided step costs two.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import UsageError
from triptych.models.feeds import smooth_picture
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Execution, Probe, Session
from triptych.sampling.callbacks import SamplingRun, StepCallback
from triptych.sampling.controllers import GuidanceCutoff
from triptych.sampling.guidance import GuidanceMode
from triptych.sampling.image_start import ImageStart
from triptych.sampling.pipeline import denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, TensorMap

SIZE_PX = 64


class CountingRuntime:
    """ONNX Runtime, with the rows of every call of the U-Net written down."""

    def __init__(self) -> None:
        self._runtime = make_runtime("onnxruntime")
        self.name: str = self._runtime.name
        self.formats: tuple[FormatName, ...] = self._runtime.formats
        self.rows: list[int] = []

    def open(self, artifact: Artifact) -> "CountingSession":
        rows = self.rows if artifact.spec.name == "unet" else []
        return CountingSession(self._runtime.open(artifact), rows)

    def probe(self) -> Probe:
        return self._runtime.probe()


class CountingSession:
    def __init__(self, session: Session, rows: list[int]) -> None:
        self._session = session
        self._rows = rows
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.execution: Execution = session.execution

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        self._rows.append(len(feed["sample"]) if "sample" in feed else 0)
        return self._session.run(feed, outputs)

    def close(self) -> None:
        self._session.close()


Count = Callable[..., list[int]]


@pytest.fixture
def count(onnx_bundle: Bundle) -> Count:
    """Runs with some settings; gives back the rows of each call."""

    def run(*, callback: StepCallback | None = None, **changes: object) -> list[int]:
        settings = Settings(prompts=Prompts(prompt=("a cat",)), height_px=SIZE_PX, width_px=SIZE_PX)
        if "start" in changes:
            settings = replace(settings, height_px=None, width_px=None)
        settings = replace(settings, **changes)  # type: ignore[arg-type]
        runtime = CountingRuntime()
        prepared = prepare(onnx_bundle, runtime, settings)
        runtime.rows.clear()
        assert all(
            np.isfinite(event.latents).all()
            for event in denoise(onnx_bundle, runtime, prepared, callback_on_step_end=callback)
        )
        return runtime.rows

    return run


def picture(strength: float) -> ImageStart:
    return ImageStart(image=smooth_picture(SIZE_PX, SIZE_PX), strength=strength)


@pytest.mark.parametrize(("mode", "expected"), [("batched", [2] * 50), ("split", [1] * 100)])
def test_fifty_guided_steps(mode: GuidanceMode, expected: list[int], count: Count) -> None:
    assert count(guidance_mode=mode) == expected


def test_one_run_of_32_steps_for_five_of_1_4_8_16_and_32(count: Count) -> None:
    wanted = (1, 4, 8, 16, 32)
    once = len(count(num_inference_steps=32))
    apart = sum(len(count(num_inference_steps=steps)) for steps in wanted)
    assert (once, apart) == (32, 61)


@pytest.mark.parametrize(("steps", "rows"), [(25, 36), (50, 71)])
@pytest.mark.parametrize("mode", ["batched", "split"])
def test_guidance_cut_off_after_two_fifths(
    mode: GuidanceMode, steps: int, rows: int, count: Count
) -> None:
    cutoff = GuidanceCutoff(cutoff_step_ratio=0.4)
    taken = count(callback=cutoff, num_inference_steps=steps, guidance_mode=mode)
    assert sum(taken) == rows
    assert max(taken) == (2 if mode == "batched" else 1)


def test_guidance_cut_off_at_a_step(count: Count) -> None:
    taken = count(callback=GuidanceCutoff(cutoff_step_index=10), num_inference_steps=25)
    assert taken == [2] * 11 + [1] * 14


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.0, 0.4), [2] * 4 + [1] * 6),
        ((0.2, 0.7), [1] * 2 + [2] * 5 + [1] * 3),
        ((0.5, 1.0), [1] * 5 + [2] * 5),
    ],
)
def test_guidance_in_an_interval(
    interval: tuple[float, float], expected: list[int], count: Count
) -> None:
    assert count(num_inference_steps=10, guidance_interval=interval) == expected


def test_guidance_by_a_schedule(count: Count) -> None:
    scales = (7.5, 5.0, 1.0, 0.0, 3.0)
    assert count(num_inference_steps=5, guidance_schedule=scales) == [2, 2, 1, 1, 2]


def test_an_interrupt_at_index_10_leaves_eleven_steps(count: Count) -> None:
    def interrupt(
        run: SamplingRun, step_index: int, timestep: float, callback_kwargs: dict[str, Array]
    ) -> Mapping[str, Array]:
        del timestep
        if step_index == 10:
            run._interrupt = True
        return callback_kwargs

    assert len(count(callback=interrupt)) == 11


@pytest.mark.parametrize(
    ("steps", "strength", "taken"),
    [(50, 0.3, 15), (50, 0.9999, 49), (50, 1.0, 50), (4, 0.5, 2), (2, 0.5, 1), (1, 1.0, 1)],
)
def test_a_picture_made_anew_in_part(steps: int, strength: float, taken: int, count: Count) -> None:
    rows = count(num_inference_steps=steps, start=picture(strength))
    assert rows == [2] * taken


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.5), (10, 0.09), (4, 0.2)])
def test_a_strength_that_leaves_no_step(steps: int, strength: float, count: Count) -> None:
    with pytest.raises(UsageError, match="leaves none"):
        count(num_inference_steps=steps, start=picture(strength))


@pytest.mark.parametrize("scale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_and_lightning_run_unguided(steps: int, scale: float, count: Count) -> None:
    assert count(num_inference_steps=steps, guidance_scale=scale) == [1] * steps


@pytest.mark.parametrize(
    ("steps", "split", "base", "refiner"),
    [(40, 0.8, 32, 8), (50, 0.8, 40, 10), (75, 0.7, 52, 23), (30, 0.8, 23, 7), (25, 0.8, 20, 5)],
)
def test_steps_shared_by_two_models(
    steps: int, split: float, base: int, refiner: int, count: Count
) -> None:
    assert len(count(num_inference_steps=steps, denoising_end=split)) == base
    latents = np.zeros((1, 4, SIZE_PX // 8, SIZE_PX // 8), np.float32)
    rest = count(
        num_inference_steps=steps, denoising_start=split, start=ImageStart(latents=latents)
    )
    assert len(rest) == refiner
