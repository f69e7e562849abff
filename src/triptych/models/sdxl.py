"""What SDXL is, as numbers read from its configs, and the component specs.

SDXL's sizes stand here and nowhere else. Everything is read from the config files, so a tiny
random model and the published one go through the same code.

Source:
    Podell et al. 2023, arXiv:2307.01952; stable-diffusion-xl-base-1.0's configs; tensor roles as
    in diffusers' pipeline_stable_diffusion_xl.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from triptych.errors import CheckpointError
from triptych.models.component import ComponentSpec
from triptych.models.configs import JsonObject, read_json, setting
from triptych.models.preview_decoder import check_preview_decoder, find_preview_decoder
from triptych.tensors import TensorSpec
from triptych.types import ComponentName, Precision

COMPONENTS: tuple[ComponentName, ...] = (
    "text_encoder",
    "text_encoder_2",
    "unet",
    "vae_encoder",
    "vae_decoder",
)
"""What every base model has, in the order they run."""

SdxlKind: TypeAlias = Literal["base", "refiner"]
"""base: two text encoders and 6 time_ids. refiner: text_encoder_2 alone and 5 time_ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderSizes:
    """The sizes of one CLIP text encoder.

    Attributes:
        hidden_size: width of a token embedding: 768 and 1280 in SDXL.
        num_hidden_layers: transformer layers: 12 and 32 in SDXL.
        max_position_embeddings: tokens: 77.
        projection_dim: width of the pooled output: 1280 in text_encoder_2.
    """

    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    projection_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SdxlConfig:
    """The numbers of one SDXL model that its runtimes and sampler need.

    Attributes:
        kind: base or refiner.
        text_encoders: sizes by component name.
        latent_channels: channels of the latents: 4.
        unet_in_channels: 4, or 9 for an inpainting U-Net.
        cross_attention_dim: width of encoder_hidden_states: 2048 in the base model.
        num_time_ids: 6 in the base model, 5 in the refiner.
        sample_size: the latent edge the U-Net was trained at: 128.
        vae_scale_factor: image pixels for one latent cell: 8.
        scaling_factor: latents = encoded x scaling_factor: 0.13025.
        latents_mean: of each latent channel, for VAEs that normalise; None for SDXL's own.
        latents_std: of each latent channel, as `latents_mean`.
        force_upcast: the VAE overflows in fp16 and must stay in fp32.
        force_zeros_for_empty_prompt: without a negative prompt its embeddings are zeros.
        has_preview_decoder: a small decoder for previews is there too.
    """

    kind: SdxlKind
    text_encoders: Mapping[ComponentName, TextEncoderSizes]
    latent_channels: int
    unet_in_channels: int
    cross_attention_dim: int
    num_time_ids: int
    sample_size: int
    vae_scale_factor: int
    scaling_factor: float
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    force_upcast: bool
    force_zeros_for_empty_prompt: bool
    has_preview_decoder: bool

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net is told a mask and the masked picture besides the latents."""
        return self.unet_in_channels == 2 * self.latent_channels + 1

    @property
    def components(self) -> tuple[ComponentName, ...]:
        """The components this model has, in the order they run; the preview decoder last."""
        absent = {"text_encoder", "text_encoder_2"} - set(self.text_encoders)
        present = tuple(name for name in COMPONENTS if name not in absent)
        return (*present, "preview_decoder") if self.has_preview_decoder else present


def read_sdxl_config(folder: Path, *, preview_decoder: Path | None = None) -> SdxlConfig:
    """Read the configs of a diffusers checkpoint, or of a bundle in optimum's layout.

    Args:
        folder: holds model_index.json and one folder for each component. The VAE's config is
            taken from vae/, or from vae_decoder/ where the layout splits the VAE.
        preview_decoder: the folder of a preview decoder that is elsewhere; None takes
            preview_decoder/ where there is one.

    Raises:
        CheckpointError: a config is missing, they do not describe an SDXL model, or the preview
            decoder is not one for it.
    """
    index = read_json(folder / "model_index.json")
    unet = read_json(folder / "unet" / "config.json")
    vae_folder = "vae" if (folder / "vae").is_dir() else "vae_decoder"
    vae = read_json(folder / vae_folder / "config.json")
    if unet.get("addition_embed_type") != "text_time":
        raise CheckpointError(
            f"{folder}/unet/config.json: got addition_embed_type "
            f"{unet.get('addition_embed_type')!r}, want 'text_time'. This is not an SDXL U-Net."
        )
    if unet.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            f"{folder}/unet/config.json: got time_cond_proj_dim {unet['time_cond_proj_dim']}, want "
            "none: this U-Net is told the guidance scale besides, which nothing here does yet. "
            "Take the LCM-LoRA of the model, fused, or Turbo or Lightning."
        )
    names: tuple[ComponentName, ...] = ("text_encoder", "text_encoder_2")
    encoders = {
        name: _read_text_encoder(folder / name) for name in names if _is_present(index, name)
    }
    if "text_encoder_2" not in encoders:
        raise CheckpointError(
            f"{folder}/model_index.json: got no text_encoder_2, want one. "
            "Every SDXL model has it; this is another kind of pipeline."
        )
    preview = find_preview_decoder(folder, preview_decoder)
    config = _sdxl_config(
        folder, index=index, unet=unet, vae=vae, encoders=encoders, has_preview=preview is not None
    )
    if preview is not None:
        check_preview_decoder(
            preview,
            latent_channels=config.latent_channels,
            vae_scale_factor=config.vae_scale_factor,
        )
    return config


def _is_present(index: JsonObject, component: str) -> bool:
    """Whether model_index.json names a class for a component: absent ones are [null, null]."""
    entry = index.get(component)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _read_text_encoder(folder: Path) -> TextEncoderSizes:
    config = read_json(folder / "config.json")
    where = f"{folder}/config.json"
    return TextEncoderSizes(
        hidden_size=setting(config, "hidden_size", int, where=where),
        num_hidden_layers=setting(config, "num_hidden_layers", int, where=where),
        max_position_embeddings=setting(config, "max_position_embeddings", int, where=where),
        projection_dim=setting(config, "projection_dim", int, where=where),
    )


def _sdxl_config(
    folder: Path,
    *,
    index: JsonObject,
    unet: JsonObject,
    vae: JsonObject,
    encoders: Mapping[ComponentName, TextEncoderSizes],
    has_preview: bool,
) -> SdxlConfig:
    where = f"{folder}/unet/config.json"
    embedding_width = setting(unet, "projection_class_embeddings_input_dim", int, where=where)
    id_width = setting(unet, "addition_time_embed_dim", int, where=where)
    # The added embedding is text_embeds joined with one sinusoid for each time id
    # (diffusers unet_2d_condition.py, get_aug_embed): the number of ids follows.
    num_time_ids = (embedding_width - encoders["text_encoder_2"].projection_dim) // id_width
    if num_time_ids not in (5, 6):
        raise CheckpointError(
            f"{where}: got {num_time_ids} time_ids, want 6 (base) or 5 (refiner)."
        )
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise CheckpointError(
            f"{folder}: the VAE's block_out_channels are {blocks!r}, want a list of some."
        )
    vae_where = f"{folder} VAE config"
    latent_channels = setting(vae, "latent_channels", int, where=vae_where)
    scaling_factor = setting(vae, "scaling_factor", float, where=vae_where)
    if not (0 < scaling_factor < math.inf):
        raise CheckpointError(
            f"{vae_where} 'scaling_factor': got {scaling_factor}, want a positive number."
        )
    return SdxlConfig(
        kind="base" if num_time_ids == 6 else "refiner",
        text_encoders=encoders,
        latent_channels=latent_channels,
        unet_in_channels=setting(unet, "in_channels", int, where=where),
        cross_attention_dim=setting(unet, "cross_attention_dim", int, where=where),
        num_time_ids=num_time_ids,
        sample_size=setting(unet, "sample_size", int, where=where),
        vae_scale_factor=2 ** (len(blocks) - 1),
        scaling_factor=scaling_factor,
        latents_mean=_channel_numbers(vae, "latents_mean", latent_channels, where=vae_where),
        latents_std=_channel_numbers(vae, "latents_std", latent_channels, where=vae_where),
        # Absent in old configs; diffusers' own default is true (autoencoder_kl.py).
        force_upcast=bool(vae.get("force_upcast", True)),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        has_preview_decoder=has_preview,
    )


def _channel_numbers(
    vae: JsonObject, name: str, num_channels: int, *, where: str
) -> tuple[float, ...] | None:
    values = vae.get(name)
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) != num_channels
        or not all(type(value) in (int, float) and math.isfinite(value) for value in values)
    ):
        raise CheckpointError(
            f"{where} {name!r}: got {values!r}, want {num_channels} numbers, one for each channel."
        )
    return tuple(map(float, values))


def component_spec(component: ComponentName, config: SdxlConfig) -> ComponentSpec:
    """The contract of one component of one model, in triptych's vocabulary."""
    match component:
        case "text_encoder" | "text_encoder_2":
            return _text_encoder_spec(component, config)
        case "unet":
            return _unet_spec(config)
        case "vae_encoder":
            return _vae_encoder_spec(config)
        case "vae_decoder" | "preview_decoder":
            return _decoder_spec(component, config)


def component_precision(
    component: ComponentName, config: SdxlConfig, precision: Precision
) -> Precision:
    """The arithmetic of one component: the VAE stays fp32 where half precision overflows it.

    Source: force_upcast in SDXL's VAE config; diffusers pipeline_stable_diffusion_xl.py upcasts
    the same way before it decodes.
    """
    if component in ("vae_encoder", "vae_decoder") and config.force_upcast:
        return "fp32"
    return precision


def _text_encoder_spec(component: ComponentName, config: SdxlConfig) -> ComponentSpec:
    sizes = config.text_encoders[component]
    tokens = sizes.max_position_embeddings
    outputs = [_float("hidden_states", "batch", tokens, sizes.hidden_size)]
    if component == "text_encoder_2":
        outputs.append(_float("text_embeds", "batch", sizes.projection_dim))
    return ComponentSpec(
        name=component,
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", tokens)),),
        outputs=tuple(outputs),
    )


def _unet_spec(config: SdxlConfig) -> ComponentSpec:
    encoder = config.text_encoders["text_encoder_2"]
    return ComponentSpec(
        name="unet",
        inputs=(
            _float("sample", "batch", config.unet_in_channels, "height", "width"),
            _float("timestep"),
            _float(
                "encoder_hidden_states",
                "batch",
                encoder.max_position_embeddings,
                config.cross_attention_dim,
            ),
            _float("text_embeds", "batch", encoder.projection_dim),
            _float("time_ids", "batch", config.num_time_ids),
        ),
        outputs=(_float("noise_pred", "batch", config.latent_channels, "height", "width"),),
    )


def _vae_encoder_spec(config: SdxlConfig) -> ComponentSpec:
    # Mean and log-variance of the posterior, not a draw from it: a draw differs run by run.
    moments = _float("moments", "batch", 2 * config.latent_channels, "height", "width")
    return ComponentSpec(name="vae_encoder", inputs=(_image(config),), outputs=(moments,))


def _decoder_spec(component: ComponentName, config: SdxlConfig) -> ComponentSpec:
    """The VAE's decoder takes latents / scaling_factor; the preview's takes them as they are."""
    latents = _float("latents", "batch", config.latent_channels, "height", "width")
    return ComponentSpec(name=component, inputs=(latents,), outputs=(_image(config),))


def _image(config: SdxlConfig) -> TensorSpec:
    scale = config.vae_scale_factor
    return _float("image", "batch", 3, f"{scale}*height", f"{scale}*width")


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)
