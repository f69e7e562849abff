"""Operations of SDXL's published networks, against counts made elsewhere."""

from collections.abc import Mapping

import numpy as np
import pytest

from triptych.models import published
from triptych.models.feeds import component_cases
from triptych.models.flops import count_flops
from triptych.models.sdxl import SdxlConfig, TextEncoderSizes, component_spec
from triptych.types import ComponentName

SDXL = SdxlConfig(
    kind="base",
    text_encoders={
        "text_encoder": TextEncoderSizes(
            hidden_size=768, num_hidden_layers=12, max_position_embeddings=77, projection_dim=768
        ),
        "text_encoder_2": TextEncoderSizes(
            hidden_size=1280, num_hidden_layers=32, max_position_embeddings=77, projection_dim=1280
        ),
    },
    latent_channels=4,
    unet_in_channels=4,
    cross_attention_dim=2048,
    num_time_ids=6,
    sample_size=128,
    vae_scale_factor=8,
    scaling_factor=0.13025,
    latents_mean=None,
    latents_std=None,
    force_upcast=True,
    force_zeros_for_empty_prompt=True,
    has_preview_decoder=False,
)
CONFIGS: Mapping[ComponentName, published.NetworkConfig] = {
    "text_encoder": published.TEXT_ENCODER,
    "text_encoder_2": published.TEXT_ENCODER_2,
    "unet": published.UNET,
    "vae_encoder": published.VAE,
    "vae_decoder": published.VAE,
}


def counted(component: ComponentName, *, edge_px: int) -> int:
    axes = {"height": edge_px // 8, "width": edge_px // 8}
    ids = np.zeros((1, 77), np.int64)
    feed = next(component_cases(component, SDXL, input_ids=ids, fixed_axes=axes)).feed
    return count_flops(component_spec(component, SDXL), CONFIGS[component], feed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("component", "edge_px", "tflop"),
    [
        ("unet", 1024, 6.761),
        ("unet", 512, 1.589),
        ("vae_decoder", 1024, 10.470),
        ("vae_encoder", 1024, 4.879),
        ("text_encoder", 1024, 0.0133),
        ("text_encoder_2", 1024, 0.0979),
    ],
)
def test_the_published_networks(component: ComponentName, edge_px: int, tflop: float) -> None:
    """The U-Net's is T-GATE's published count with attention's own products added."""
    assert counted(component, edge_px=edge_px) / 1e12 == pytest.approx(tflop, rel=1e-3)
