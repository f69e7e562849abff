"""Runs that another pipeline made, held against a recording by their latents alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.bundle.bundle import Bundle
from triptych.errors import TensorMismatchError, UsageError
from triptych.parity.record import default_settings, record
from triptych.parity.recording import Recording
from triptych.parity.report import overall
from triptych.parity.trajectory import foreign_run_rows
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SchedulerChoice
from triptych.types import Latents

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempting to cast a BatchFeature"),
]

PROMPT = "a red cat"
STEPS = 3


@pytest.fixture(scope="module")
def recording(checkpoint_bundle: Bundle) -> Recording:
    """Without guidance, on a scheduler that does not scale the U-Net's sample."""
    settings = replace(
        default_settings(checkpoint_bundle.config, num_inference_steps=STEPS),
        prompts=Prompts(prompt=(PROMPT,)),
        guidance_scale=1.0,
        scheduler=SchedulerChoice(name="ddim"),
        height_px=64,
        width_px=72,
    )
    runtime = make_runtime("pytorch", RuntimeSettings(num_threads=1))
    return record(checkpoint_bundle, runtime, settings, report=lambda _: None)


def optimum_latents(folder: Path, recording: Recording, *, bound: bool) -> dict[int, Latents]:
    """What a callback sees in optimum-onnx's own pipeline."""
    from diffusers import DDIMScheduler
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    pipeline = ORTStableDiffusionXLPipeline.from_pretrained(folder, use_io_binding=bound)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    seen: dict[int, Latents] = {}

    def keep(
        _: object, index: int, __: object, kwargs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        seen[index + 1] = kwargs["latents"].numpy().copy()
        return kwargs

    pipeline(
        prompt=PROMPT,
        height=64,
        width=72,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        latents=torch.from_numpy(recording.noise.copy()),
        output_type="latent",
        callback_on_step_end=keep,
    )
    return seen


def test_optimum_s_pipeline_passes_without_bound_buffers(
    recording: Recording, onnx_folder: Path
) -> None:
    rows = foreign_run_rows(
        recording, optimum_latents(onnx_folder, recording, bound=False), precision="fp32"
    )
    assert overall(row.verdict for row in rows) == "passed"
    assert [row.step for row in rows] == [1, 2, 3]


def test_latents_that_the_u_net_s_output_was_written_over_are_found_at_the_first_step(
    recording: Recording, onnx_folder: Path
) -> None:
    """optimum-onnx 0.1.0 binds the output to the caller's latents, without guidance."""
    rows = foreign_run_rows(
        recording, optimum_latents(onnx_folder, recording, bound=True), precision="fp32"
    )
    assert [row.verdict for row in rows] == ["failed"] * STEPS
    assert rows[0].rel_l2 is not None
    assert rows[0].rel_l2 > 1e-2


def test_latents_that_cannot_be_compared(recording: Recording) -> None:
    last = recording.latents[-1]
    with pytest.raises(UsageError, match="got step 4, want 1 to 3"):
        foreign_run_rows(recording, {4: last}, precision="fp32")
    with pytest.raises(TensorMismatchError, match="Nothing is broadcast"):
        foreign_run_rows(recording, {1: np.repeat(last, 2, axis=0)}, precision="fp32")
