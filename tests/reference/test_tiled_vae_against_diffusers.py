"""A VAE in tiles gives what diffusers' does, and nearly what the whole gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.parity.metrics import psnr_db, rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session
from triptych.runtimes.tiled_vae import TiledVae, run_in_tiles
from triptych.types import Array

TILE_PX = 64
SIZES = ((20, 13), (9, 8), (8, 17))
"""Latent cells; a tile has 8, so the last tiles of a row or column are cut short."""


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae").requires_grad_(False)
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PX, TILE_PX // 8
    vae.enable_tiling()
    return vae


def latents_of(height: int, width: int) -> Array:
    random = np.random.default_rng(0)
    return (random.standard_normal((2, 4, height, width)) / 0.13025).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_decoding_is_diffusers(
    size: tuple[int, int], vae: AutoencoderKL, checkpoint_bundle: Bundle
) -> None:
    latents = latents_of(*size)
    runtime = TiledVae(make_runtime("pytorch"), tile_px=TILE_PX, scale=8)
    with open_session(runtime, checkpoint_bundle, "vae_decoder") as decoder:
        found = decoder.run({"latents": latents})["image"]
    expected = vae.decode(torch.from_numpy(latents)).sample.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_encoding_is_diffusers(
    size: tuple[int, int], vae: AutoencoderKL, checkpoint_bundle: Bundle
) -> None:
    height, width = size
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, (1, 3, 8 * height, 8 * width)).astype(np.float32)
    runtime = TiledVae(make_runtime("pytorch"), tile_px=TILE_PX, scale=8)
    with open_session(runtime, checkpoint_bundle, "vae_encoder") as encoder:
        found = encoder.run({"image": image})["moments"]
    posterior = vae.encode(torch.from_numpy(image)).latent_dist
    np.testing.assert_allclose(found, posterior.parameters.numpy(), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["onnx_bundle", "openvino_bundle"])
def test_engines_tile_alike(
    fixture: str, checkpoint_bundle: Bundle, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    name = {"onnx_bundle": "onnxruntime", "openvino_bundle": "openvino"}[fixture]
    pictures = []
    for engine, opened in ((name, bundle), ("pytorch", checkpoint_bundle)):
        runtime = TiledVae(make_runtime(engine), tile_px=TILE_PX, scale=8)
        with open_session(runtime, opened, "vae_decoder") as decoder:
            pictures.append(decoder.run({"latents": latents_of(20, 13)})["image"])
    assert rel_l2(pictures[0], pictures[1]) <= 5e-6


def test_what_fits_into_a_tile_is_left_whole(checkpoint_bundle: Bundle) -> None:
    latents = latents_of(8, 8)
    tiled = TiledVae(make_runtime("pytorch"), tile_px=TILE_PX, scale=8)
    pictures = []
    for runtime in (tiled, make_runtime("pytorch")):
        with open_session(runtime, checkpoint_bundle, "vae_decoder") as decoder:
            pictures.append(decoder.run({"latents": latents})["image"])
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_something_local_is_not_changed_by_tiles() -> None:
    values = np.random.default_rng(0).standard_normal((1, 2, 37, 21)).astype(np.float32)
    found = run_in_tiles(lambda part: 3 * part, values, tile=16, made=16)
    np.testing.assert_allclose(found, 3 * values, rtol=1e-6)
    assert psnr_db(found, 3 * values) > 120


@pytest.mark.parametrize("tile_px", [0, -64, 48])
def test_tiles_that_have_no_quarter(tile_px: int) -> None:
    with pytest.raises(UsageError, match=f"got {tile_px}, want a positive multiple of 32"):
        TiledVae(make_runtime("pytorch"), tile_px=tile_px, scale=8)
