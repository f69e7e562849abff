"""Text to image on a real bundle: what is prepared, denoised and decoded, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.errors import BundleError, ScheduleError, UsageError
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime
from triptych.sampling.loop import StepEvent
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.pipeline import Prepared, decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import ComponentName

SMALL = {"height_px": 64, "width_px": 40, "num_inference_steps": 2}


def settings(*, prompts: Prompts | None = None, **changes: object) -> Settings:
    chosen = {"prompts": prompts or Prompts(prompt=("a cat",)), **SMALL, **changes}
    return Settings(**chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return make_runtime("onnxruntime")


def run(bundle: Bundle, runtime: Runtime, chosen: Settings) -> tuple[Prepared, list[StepEvent]]:
    prepared = prepare(bundle, runtime, chosen)
    return prepared, list(denoise(bundle, runtime, prepared))


# --- what is prepared ----------------------------------------------------------------------------


def test_size_left_open_is_the_one_the_model_was_trained_at(
    onnx_bundle: Bundle, runtime: Runtime
) -> None:
    prepared = prepare(onnx_bundle, runtime, settings(height_px=None, width_px=None))
    assert (prepared.height_px, prepared.width_px) == (128, 128)
    assert prepared.start.noise.shape == (1, 4, 16, 16)
    assert prepared.conditioning.time_ids[0].tolist() == [128, 128, 0, 0, 128, 128]


def test_height_and_width_keep_their_places(onnx_bundle: Bundle, runtime: Runtime) -> None:
    prepared = prepare(onnx_bundle, runtime, settings())
    assert prepared.start.noise.shape == (1, 4, 8, 5)
    assert prepared.conditioning.time_ids[0].tolist() == [64, 40, 0, 0, 64, 40]


def test_micro_conditioning_reaches_the_unet(onnx_bundle: Bundle, runtime: Runtime) -> None:
    sizes = MicroConditioning(original_size=(512, 256), crop=(8, 16))
    prepared, events = run(onnx_bundle, runtime, settings(sizes=sizes))
    assert prepared.conditioning.time_ids[-1].tolist() == [512, 256, 8, 16, 64, 40]
    _, plain = run(onnx_bundle, runtime, settings())
    assert not np.allclose(events[-1].latents, plain[-1].latents, atol=1e-3)


def test_noise_is_the_seeds(onnx_bundle: Bundle, runtime: Runtime) -> None:
    two = Prompts(prompt=("a cat", "a dog"))
    one_seed = prepare(onnx_bundle, runtime, settings(prompts=two, seeds=(7,)))
    two_seeds = prepare(onnx_bundle, runtime, settings(prompts=two, seeds=(7, 8)))
    shape = (2, 4, 8, 5)
    np.testing.assert_array_equal(
        one_seed.start.noise, draw_noise(NoiseStream(seeds=(7,)), shape)[0]
    )
    np.testing.assert_array_equal(
        two_seeds.start.noise, draw_noise(NoiseStream(seeds=(7, 8)), shape)[0]
    )


def test_given_noise_is_the_seeds_when_it_is_the_seeds_noise(
    onnx_bundle: Bundle, runtime: Runtime
) -> None:
    noise = draw_noise(NoiseStream(seeds=(3,)), (1, 4, 8, 5))[0]
    _, seeded = run(onnx_bundle, runtime, settings(seeds=(3,)))
    _, given = run(onnx_bundle, runtime, settings(noise=noise, seeds=(99,)))
    np.testing.assert_array_equal(given[-1].latents, seeded[-1].latents)


def test_executions_name_both_encoders(onnx_bundle: Bundle, runtime: Runtime) -> None:
    executions = prepare(onnx_bundle, runtime, settings()).executions
    assert set(executions) == {"text_encoder", "text_encoder_2"}
    assert {execution.runtime for execution in executions.values()} == {"onnxruntime"}


# --- what is drawn -------------------------------------------------------------------------------


def test_first_latents_start_from_scaled_noise(onnx_bundle: Bundle, runtime: Runtime) -> None:
    prepared, events = run(onnx_bundle, runtime, settings())
    first = events[0]
    start = prepared.start.noise * np.float32(prepared.schedule.init_noise_sigma)
    np.testing.assert_allclose(
        first.denoised, start - np.float32(first.sigma) * first.noise_pred, atol=1e-4
    )


@pytest.mark.slow
def test_pictures_of_a_batch_are_those_drawn_alone(onnx_bundle: Bundle, runtime: Runtime) -> None:
    both = settings(
        prompts=Prompts(prompt=("a cat", "a dog")), num_images_per_prompt=2, seeds=(1, 2, 3, 4)
    )
    _, together = run(onnx_bundle, runtime, both)
    for row, (text, seed) in enumerate((("a cat", 1), ("a cat", 2), ("a dog", 3), ("a dog", 4))):
        alone = settings(prompts=Prompts(prompt=(text,)), seeds=(seed,))
        _, events = run(onnx_bundle, runtime, alone)
        np.testing.assert_allclose(
            together[-1].latents[row], events[-1].latents[0], rtol=1e-4, atol=1e-4
        )


def test_guidance_modes_agree(onnx_bundle: Bundle, runtime: Runtime) -> None:
    _, batched = run(onnx_bundle, runtime, settings(guidance_mode="batched"))
    _, split = run(onnx_bundle, runtime, settings(guidance_mode="split"))
    np.testing.assert_allclose(split[-1].latents, batched[-1].latents, rtol=1e-4, atol=1e-4)


def test_guidance_off_needs_no_unconditional_half(onnx_bundle: Bundle, runtime: Runtime) -> None:
    prepared, events = run(onnx_bundle, runtime, settings(guidance_scale=1.0))
    assert len(prepared.conditioning.text_embeds) == 1
    assert len(events) == 2


def test_decoding_names_its_pictures(onnx_bundle: Bundle, runtime: Runtime) -> None:
    _, events = run(onnx_bundle, runtime, settings())
    latents = {str(event.index): event.latents.copy() for event in events}
    images = decode(onnx_bundle, runtime, latents)
    assert set(images) == {"0", "1"}
    assert images["0"].shape == (1, 3, 64, 40)
    assert not np.array_equal(images["0"], images["1"])


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["height_px", "width_px"])
@pytest.mark.parametrize("length", [0, -8, 7, 100])
def test_size_that_is_no_multiple_of_eight(
    onnx_bundle: Bundle, runtime: Runtime, name: str, length: int
) -> None:
    with pytest.raises(UsageError, match=f"{name}: got {length}, want a positive multiple of 8"):
        prepare(onnx_bundle, runtime, settings(prompts=None, **{name: length}))


@pytest.mark.parametrize("shape", [(1, 4, 5, 8), (2, 4, 8, 5), (1, 3, 8, 5), (1, 4, 64, 40)])
def test_noise_of_another_shape(
    onnx_bundle: Bundle, runtime: Runtime, shape: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=r"latents: got \[.*want \[1, 4, 8, 5\]"):
        prepare(onnx_bundle, runtime, settings(noise=np.zeros(shape, np.float32)))


def test_more_seeds_than_pictures(onnx_bundle: Bundle, runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="3 seeds for 2 images"):
        prepare(onnx_bundle, runtime, settings(num_images_per_prompt=2, seeds=(1, 2, 3)))


@pytest.mark.parametrize("count", [0, -1])
def test_no_pictures(onnx_bundle: Bundle, runtime: Runtime, count: int) -> None:
    with pytest.raises(UsageError, match=f"num_images_per_prompt: got {count}"):
        prepare(onnx_bundle, runtime, settings(num_images_per_prompt=count))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_guidance_scale_that_is_no_number(
    onnx_bundle: Bundle, runtime: Runtime, scale: float
) -> None:
    with pytest.raises(UsageError, match="guidance_scale: got"):
        prepare(onnx_bundle, runtime, settings(guidance_scale=scale))


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_outside_the_schedule(onnx_bundle: Bundle, runtime: Runtime, steps: int) -> None:
    with pytest.raises(ScheduleError, match=f"got {steps}"):
        prepare(onnx_bundle, runtime, settings(num_inference_steps=steps))


def test_solver_that_is_not_known(onnx_folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()  # a foreign folder: nothing knows its hashes
    path = folder / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "_class_name": "DEISMultistepScheduler"}))
    with pytest.raises(ScheduleError, match="DEISMultistepScheduler"):
        prepare(open_bundle(folder), runtime, settings())


def test_component_that_is_missing(onnx_bundle: Bundle, runtime: Runtime) -> None:
    without: dict[ComponentName, Artifact] = {
        name: artifact for name, artifact in onnx_bundle.artifacts.items() if name != "unet"
    }
    bundle = replace(onnx_bundle, artifacts=without)
    prepared = prepare(bundle, runtime, settings())
    with pytest.raises(BundleError, match="want unet"):
        next(denoise(bundle, runtime, prepared))
