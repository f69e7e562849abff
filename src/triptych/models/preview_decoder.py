"""The optional preview decoder: a TAESD, in diffusers an AutoencoderTiny, that shows latents fast.

Its encoder is not used. `latent_magnitude` and `latent_shift` of its config are not read: diffusers
uses them only where latents are stored as bytes, never in `decode`.

Source: diffusers 0.39 models/autoencoders/autoencoder_tiny.py, AutoencoderTiny, and vae.py,
DecoderTiny; trained by Ollin Boer Bohan, https://github.com/madebyollin/taesd.
"""

from pathlib import Path

from triptych.errors import CheckpointError
from triptych.models.configs import JsonObject, read_json, setting

PREVIEW_DECODER_FOLDER = "preview_decoder"
"""Where a checkpoint or a bundle keeps it, beside the folders of the other networks."""


def find_preview_decoder(folder: Path, given: Path | None) -> Path | None:
    """The preview decoder's folder: the one given, else the one inside `folder`, else None."""
    own = folder / PREVIEW_DECODER_FOLDER
    return given or (own if own.is_dir() else None)


def check_preview_decoder(folder: Path, *, latent_channels: int, vae_scale_factor: int) -> None:
    """Refuse a network that cannot decode a model's latents to pictures of the right size.

    Args:
        folder: holds its config.json.
        latent_channels: of the model's latents.
        vae_scale_factor: image pixels for one latent cell of the model.

    Raises:
        CheckpointError: the config is missing, is not an AutoencoderTiny's, or does not fit the
            model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: got no config.json, want a preview decoder as diffusers' "
            "AutoencoderTiny.save_pretrained writes it."
        )
    config = read_json(path)
    if config.get("_class_name") != "AutoencoderTiny":
        raise CheckpointError(
            f"{path} '_class_name': got {config.get('_class_name')!r}, want 'AutoencoderTiny'. "
            "A preview decoder is a TAESD, such as madebyollin/taesdxl."
        )
    where = str(path)
    channels = setting(config, "latent_channels", int, where=where)
    if channels != latent_channels:
        raise CheckpointError(
            f"{where} 'latent_channels': got {channels}, want this model's {latent_channels}. "
            "It was made for another family of models; SDXL's is madebyollin/taesdxl."
        )
    _check_picture(config, vae_scale_factor=vae_scale_factor, where=where)
    scaling_factor = setting(config, "scaling_factor", float, where=where)
    if scaling_factor <= 0:
        raise CheckpointError(
            f"{where} 'scaling_factor': got {scaling_factor}, want a number above 0."
        )


def _check_picture(config: JsonObject, *, vae_scale_factor: int, where: str) -> None:
    colours = setting(config, "out_channels", int, where=where)
    if colours != 3:
        raise CheckpointError(f"{where} 'out_channels': got {colours}, want 3: red, green, blue.")
    levels = setting(config, "num_decoder_blocks", list, where=where)
    scale = setting(config, "upsampling_scaling_factor", int, where=where) ** (len(levels) - 1)
    if scale != vae_scale_factor:
        raise CheckpointError(
            f"{where}: got {scale} pixels for one latent cell, by 'upsampling_scaling_factor' and "
            f"'num_decoder_blocks', want this model's {vae_scale_factor}."
        )
