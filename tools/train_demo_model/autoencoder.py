"""The first stage: an autoencoder of pictures, and the scale of its latents."""

from pathlib import Path

import numpy as np
import torch
from examples import Examples
from PIL import Image
from run import Losses, Stage, train

_BATCH = 8
_KL_WEIGHT = 3e-4
_ENCODE_BATCH = 32


def train_autoencoder(
    vae: torch.nn.Module, examples: Examples, *, stage: Stage, folder: Path
) -> None:
    """Train to return pictures: L1 + L2, and a little of the KL divergence."""
    device = next(vae.parameters()).device

    def compute(step: int, generator: np.random.Generator) -> Losses:
        del step
        pictures = examples.pictures[generator.integers(0, len(examples.pictures), _BATCH)]
        wanted = _floats(pictures).to(device)
        posterior = vae.encode(wanted).latent_dist
        noise = torch.from_numpy(
            generator.standard_normal(tuple(posterior.mean.shape), np.float32)
        ).to(device)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - wanted
        l1, l2, kl = error.abs().mean(), error.square().mean(), posterior.kl().mean()
        num_latents = posterior.mean[0].numel()
        return {
            "loss": l1 + l2 + _KL_WEIGHT * kl / num_latents,
            "l1": l1,
            "l2": l2,
            "kl": kl / num_latents,
        }

    train(vae, compute, stage=stage, folder=folder)


@torch.no_grad()
def encode_all(vae: torch.nn.Module, pictures: np.ndarray) -> torch.Tensor:
    """Means of the latents, unscaled: float32 [pictures, 4, 16, 16], on the CPU."""
    device = next(vae.parameters()).device
    batches = [
        vae.encode(_floats(pictures[start : start + _ENCODE_BATCH]).to(device)).latent_dist.mean
        for start in range(0, len(pictures), _ENCODE_BATCH)
    ]
    return torch.cat([batch.cpu() for batch in batches])


@torch.no_grad()
def draw_reconstructions(vae: torch.nn.Module, examples: Examples, path: Path) -> None:
    """Sixteen pictures above what the autoencoder makes of them."""
    device = next(vae.parameters()).device
    pictures = examples.pictures[:: len(examples.pictures) // 16][:16]
    returned = vae.decode(vae.encode(_floats(pictures).to(device)).latent_dist.mean).sample
    levels = (returned.clamp(-1, 1).cpu().permute(0, 2, 3, 1).numpy() + 1) * 127.5
    rows = [np.concatenate(list(row), axis=1) for row in (pictures, np.rint(levels))]
    Image.fromarray(np.concatenate(rows).astype(np.uint8)).save(path)


def _floats(pictures: np.ndarray) -> torch.Tensor:
    """Pixels as the network sees them: -1 to 1, channels first."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
