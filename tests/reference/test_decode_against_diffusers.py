"""Pictures beside diffusers': the VAE decoder's floats, and the pixels made of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import Array, ImageFloats, ImagePixels

# diffusers' set_timesteps gives a torch tensor to numpy.array, whose protocol torch follows in its
# older form.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

LIMITS = {"pytorch": 1e-5, "onnxruntime": 1e-4}
"""Relative L2 of the picture, by runtime. Measured: 8.5e-7 for both."""

SIZES = [(128, 128), (72, 104)]
PROMPT = "a photo of a cat"


@pytest.fixture
def bundle(runtime_name: str, request: pytest.FixtureRequest) -> Bundle:
    """What the runtime runs."""
    fixtures = {"pytorch": "checkpoint_bundle", "onnxruntime": "onnx_bundle"}
    found: Bundle = request.getfixturevalue(fixtures[runtime_name])
    return found


def our_picture(bundle: Bundle, runtime_name: str, *, height: int, width: int) -> ImageFloats:
    """The picture of a whole run, in -1 to 1."""
    runtime = make_runtime(runtime_name)
    wishes = Settings(
        prompts=Prompts(prompt=(PROMPT,)),
        num_inference_steps=4,
        height_px=height,
        width_px=width,
        seeds=(5,),
    )
    *_, last = denoise(bundle, runtime, prepare(bundle, runtime, wishes))
    return decode(bundle, runtime, {"final": last.latents.copy()})["final"]


def their_picture(
    pipeline: StableDiffusionXLPipeline, *, height: int, width: int, output_type: str
) -> Array:
    """The picture of the same run, in 0 to 1."""
    generator = torch.Generator("cpu").manual_seed(5)
    picture: Array = np.asarray(
        pipeline(
            PROMPT,
            num_inference_steps=4,
            height=height,
            width=width,
            generator=generator,
            output_type=output_type,
        ).images
    )
    return picture


def unit_range(image: ImageFloats) -> Array:
    """From -1 to 1, to 0 to 1; as diffusers gives pictures to programs."""
    clipped: Array = np.clip(image / 2 + np.float32(0.5), 0, 1)
    return clipped


def assert_close(actual: Array, expected: Array, *, limit: float) -> None:
    error = rel_l2(actual, expected)
    assert error <= limit, f"relative L2 {error:.1e} is over {limit:.0e}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("runtime_name", LIMITS)
def test_the_picture_of_a_whole_run(
    runtime_name: str,
    size: tuple[int, int],
    bundle: Bundle,
    pipeline: StableDiffusionXLPipeline,
) -> None:
    height, width = size
    image = our_picture(bundle, runtime_name, height=height, width=width)
    actual = unit_range(image)
    limit = LIMITS[runtime_name]
    expected = their_picture(pipeline, height=height, width=width, output_type="pt")
    assert_close(actual, expected, limit=limit)
    channels_last = their_picture(pipeline, height=height, width=width, output_type="np")
    assert_close(np.ascontiguousarray(actual.transpose(0, 2, 3, 1)), channels_last, limit=limit)
    # Finished pixels: a value within the limit of a rounding border may fall to either side.
    pixels = their_picture(pipeline, height=height, width=width, output_type="pil")
    difference = pixels_from_image(image).astype(int) - pixels.astype(int)
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 1e-3


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (2, 4, 9, 13)])
@pytest.mark.parametrize("runtime_name", LIMITS)
def test_floats_before_they_are_clipped(
    runtime_name: str,
    shape: tuple[int, int, int, int],
    bundle: Bundle,
    pipeline: StableDiffusionXLPipeline,
) -> None:
    latents = 2 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    runtime = make_runtime(runtime_name)
    actual = decode(bundle, runtime, {"it": latents})["it"]
    with torch.no_grad():
        scaled = torch.from_numpy(latents) / pipeline.vae.config.scaling_factor
        expected = pipeline.vae.decode(scaled, return_dict=False)[0].numpy()
    assert np.abs(expected).max() > 1  # there is something that a clip would take away
    assert_close(actual, expected, limit=LIMITS[runtime_name])


@pytest.mark.parametrize("only", ["latents_mean", "latents_std", None])
def test_latents_are_denormalised_where_the_vae_says_how(
    only: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    """With a mean and a deviation; one of them alone counts for nothing."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    numbers = {"latents_mean": [-1.6, 2.3, 0.1, 0.7], "latents_std": [8.4, 5.5, 4.4, 5.2]}
    config = folder / "vae" / "config.json"
    chosen = {name: values for name, values in numbers.items() if only in (None, name)}
    config.write_text(json.dumps({**json.loads(config.read_text()), **chosen}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = our_picture(open_bundle(folder), "pytorch", height=72, width=104)
    expected = their_picture(pipeline, height=72, width=104, output_type="pt")
    assert_close(unit_range(image), expected, limit=LIMITS["pytorch"])


def their_pixels(image: ImageFloats) -> ImagePixels:
    pictures = VaeImageProcessor().postprocess(torch.from_numpy(image.copy()), output_type="pil")
    return np.stack([np.asarray(picture) for picture in pictures])


@given(
    image=arrays(
        np.float32, (2, 3, 5, 4), elements=st.floats(-4, 4, width=32, allow_subnormal=False)
    )
)
@settings(max_examples=100, deadline=None)
def test_pixels_of_the_same_floats_are_the_same(image: ImageFloats) -> None:
    np.testing.assert_array_equal(pixels_from_image(image), their_pixels(image))


def test_pixels_at_every_rounding_border() -> None:
    borders = (np.arange(-1, 513) / 510 * 2 - 1).astype(np.float32)  # every whole and half level
    below, above = np.nextafter(borders, np.float32(-9)), np.nextafter(borders, np.float32(9))
    image = np.stack([below, borders, above]).reshape(1, 3, 1, -1)
    pixels = pixels_from_image(image)
    np.testing.assert_array_equal(pixels, their_pixels(image))
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 256)
