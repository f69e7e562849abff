"""The preview decoder beside diffusers' AutoencoderTiny, on every engine."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.models.feeds import FIRST_SIGMA
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session
from triptych.types import FormatName, ImageFloats, Latents

pytestmark = pytest.mark.slow

LIMIT = 1e-5
"""Relative L2 of the picture. Measured: at most 3.7e-7."""

FORMATS: Mapping[str, FormatName] = {
    "pytorch": "diffusers",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "coreml-reference": "coreml",
}


def our_picture(bundle: Bundle, runtime_name: str, latents: Latents) -> ImageFloats:
    with open_session(make_runtime(runtime_name), bundle, "preview_decoder") as session:
        return session.run({"latents": latents})["image"]


@pytest.mark.parametrize("sigma", [0.0, 1.0, FIRST_SIGMA])
@pytest.mark.parametrize("runtime_name", FORMATS)
def test_latents_of_any_step(
    runtime_name: str,
    sigma: float,
    preview_bundles: Mapping[FormatName, Bundle],
    preview_checkpoint: Path,
) -> None:
    """At the size that Core ML was built for, two at once."""
    random = np.random.default_rng(3)
    latents = (sigma * random.standard_normal((2, 4, 16, 16))).astype(np.float32)
    vae = AutoencoderTiny.from_pretrained(preview_checkpoint / "preview_decoder")
    with torch.no_grad():
        scaled = torch.from_numpy(latents) / vae.config.scaling_factor
        expected = vae.decode(scaled).sample.numpy()
    actual = our_picture(preview_bundles[FORMATS[runtime_name]], runtime_name, latents)
    assert actual.shape == (2, 3, 128, 128)
    error = rel_l2(actual, expected)
    assert error <= LIMIT, f"relative L2 {error:.1e} is over {LIMIT:.0e}"


# diffusers' set_timesteps gives a torch tensor to numpy.array, whose protocol torch follows in its
# older form.
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("scaling_factor", [1.0, 0.4])
def test_the_picture_of_a_pipeline_that_has_it_for_a_vae(
    scaling_factor: float, preview_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(preview_checkpoint, tmp_path / "checkpoint")
    config = folder / "preview_decoder" / "config.json"
    changed = {**json.loads(config.read_text()), "scaling_factor": scaling_factor}
    config.write_text(json.dumps(changed))
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, vae=AutoencoderTiny.from_pretrained(config.parent)
    )
    pipeline.set_progress_bar_config(disable=True)

    def images(output_type: str) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(5)
        found: torch.Tensor = pipeline(
            "a photo of a cat",
            num_inference_steps=2,
            height=72,
            width=104,
            generator=generator,
            output_type=output_type,
        ).images
        return found

    latents, expected = images("latent").numpy(), images("pt").numpy()
    actual = our_picture(open_bundle(folder), "pytorch", latents)
    assert rel_l2(np.clip(actual / 2 + np.float32(0.5), 0, 1), expected) <= LIMIT
