"""The first stage: an autoencoder of pictures, and the scale of its latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from examples import Examples
from PIL import Image
from run import Losses, Stage, train

_BATCH = 8
_EDGE_PX, _EDGE_CONTRAST = 4, 0.1
_KL_WEIGHT = 3e-4
_ENCODE_BATCH = 32
_BLURRED_SHARE = 0.5
"""Of the examples, where the decoder learns that not every edge is sharp."""


def train_autoencoder(
    vae: AutoencoderKL, examples: Examples, *, edge_weight: float, stage: Stage, folder: Path
) -> None:
    """Train to return pictures: L1 + L2, and a little of the KL divergence.

    Args:
        vae: trained in place.
        examples: the pictures.
        edge_weight: what pixels near an edge count, where others count 1.
        stage: how long.
        folder: where it is saved.
    """
    device = next(vae.parameters()).device

    def compute(step: int, generator: np.random.Generator) -> Losses:
        del step
        pictures = examples.pictures[generator.integers(0, len(examples.pictures), _BATCH)]
        wanted = _floats(pictures).to(device)
        posterior = vae.encode(wanted).latent_dist
        noise = torch.from_numpy(
            generator.standard_normal(tuple(posterior.mean.shape), np.float32)
        ).to(device)
        returned = vae.decode(posterior.mean + posterior.std * noise).sample
        l1, l2 = _distances(returned, wanted, edge_weight=edge_weight)
        kl = posterior.kl().mean()
        num_latents = posterior.mean[0].numel()
        return {
            "loss": l1 + l2 + _KL_WEIGHT * kl / num_latents,
            "l1": l1,
            "l2": l2,
            "kl": kl / num_latents,
        }

    train(vae, compute, stage=stage, folder=folder)


def train_decoder(
    vae: AutoencoderKL,
    examples: Examples,
    latents: torch.Tensor,
    *,
    edge_weight: float,
    stage: Stage,
    folder: Path,
) -> None:
    """Train the decoder alone: latents, and what the U-Net has learned of them, stay.

    Args:
        vae: its decoder is trained in place.
        examples: the pictures; half of those that are taken are blurred ones.
        latents: unscaled, of the pictures.
        edge_weight: what pixels near an edge count, where others count 1.
        stage: how long.
        folder: where it is saved.
    """
    device = next(vae.parameters()).device
    blurred = examples.blurred()
    others = np.union1d(examples.whole(), examples.cropped())

    def compute(step: int, generator: np.random.Generator) -> Losses:
        del step
        chosen = np.where(
            generator.random(_BATCH) < _BLURRED_SHARE,
            generator.choice(blurred, _BATCH),
            generator.choice(others, _BATCH),
        )
        returned = vae.decode(latents[chosen].to(device)).sample
        wanted = _floats(examples.pictures[chosen]).to(device)
        l1, l2 = _distances(returned, wanted, edge_weight=edge_weight)
        return {"loss": l1 + l2, "l1": l1, "l2": l2}

    decoder = torch.nn.ModuleDict({"first": vae.post_quant_conv, "decoder": vae.decoder})
    train(decoder, compute, stage=stage, folder=folder)


def _distances(
    returned: torch.Tensor, wanted: torch.Tensor, *, edge_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means of absolute and squared differences."""
    error = returned - wanted
    weights = (1 + (edge_weight - 1) * _near_edges(wanted)).expand_as(error)
    l1 = (weights * error.abs()).sum() / weights.sum()
    return l1, (weights * error.square()).sum() / weights.sum()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """Means of the latents, unscaled: float32 [pictures, 4, 16, 16], on the CPU."""
    device = next(vae.parameters()).device
    batches = [
        vae.encode(_floats(pictures[start : start + _ENCODE_BATCH]).to(device)).latent_dist.mean
        for start in range(0, len(pictures), _ENCODE_BATCH)
    ]
    return torch.cat([batch.cpu() for batch in batches])


@torch.no_grad()
def draw_reconstructions(vae: AutoencoderKL, examples: Examples, path: Path) -> None:
    """Sixteen pictures above what the autoencoder makes of them."""
    device = next(vae.parameters()).device
    pictures = examples.pictures[:: len(examples.pictures) // 16][:16]
    returned = vae.decode(vae.encode(_floats(pictures).to(device)).latent_dist.mean).sample
    levels = (returned.clamp(-1, 1).cpu().permute(0, 2, 3, 1).numpy() + 1) * 127.5
    rows = [np.concatenate(list(row), axis=1) for row in (pictures, np.rint(levels))]
    Image.fromarray(np.concatenate(rows).astype(np.uint8)).save(path)


@torch.no_grad()
def equalise_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Give all latent channels mean 0 and one deviation, and leave all pictures as they are.

    One scaling factor serves all channels: one of little deviation would drown in the noise. The
    change goes into the 1 x 1 convolutions at both ends of the latents.

    Returns:
        The latents, changed as the autoencoder now gives them.
    """
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    scale = deviation / deviation.square().mean().sqrt()
    changed = (latents - mean[:, None, None]) / scale[:, None, None]
    mean, scale = mean.to(vae.device), scale.to(vae.device)
    count, last, first = len(mean), vae.quant_conv, vae.post_quant_conv
    first.bias += first.weight[:, :, 0, 0] @ mean
    first.weight *= scale[None, :, None, None]
    last.bias[:count] -= mean
    last.bias[:count] /= scale
    last.weight[:count] /= scale[:, None, None, None]
    last.bias[count:] -= 2 * scale.log()  # the logarithms of variances
    return changed


def _near_edges(pictures: torch.Tensor) -> torch.Tensor:
    """1 where a picture changes within four pixels, else 0: [batch, 1, height, width]."""
    largest, negated = (
        torch.nn.functional.max_pool2d(
            one, kernel_size=2 * _EDGE_PX + 1, stride=1, padding=_EDGE_PX
        )
        for one in (pictures, -pictures)
    )
    near: torch.Tensor = (largest + negated > _EDGE_CONTRAST).any(dim=1, keepdim=True)
    return near.float()


def _floats(pictures: np.ndarray) -> torch.Tensor:
    """Pixels as the network sees them: -1 to 1, channels first."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
