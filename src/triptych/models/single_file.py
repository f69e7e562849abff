"""A whole model in one safetensors file, in the layout that Stability AI published SDXL in.

Fine-tunes and merges come so.

Source:
    diffusers 0.39 loaders/single_file_utils.py; ComfyUI comfy/supported_models.py, SDXL, for the
    names v_pred and ztsnr.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from triptych.errors import CheckpointError
from triptych.models.original_layout import open_clip_tensors, unet_name, vae_tensors
from triptych.models.stored_tensor import StoredTensor, read_header

_UNET: Final = "model.diffusion_model."
_VAE: Final = "first_stage_model."
_CLIP: Final = "conditioner.embedders.0.transformer."
_OPEN_CLIP: Final = "conditioner.embedders.1.model."
_REFINER_OPEN_CLIP: Final = "conditioner.embedders.0.model."

_NOT_WEIGHTS: Final = ("position_ids", "logit_scale")
_PLAYGROUND: Final = "edm_mean"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """A whole model as it was found in one file. No weight has been read.

    Attributes:
        path: the file.
        networks: the weights in each network's folder, by diffusers' names.
        unused: keys that belong to no network.
        is_v_prediction: a key says that the U-Net predicts v, not the noise.
        is_zero_snr: a key says that it was trained to zero terminal signal-to-noise ratio.
    """

    path: Path
    networks: Mapping[str, Mapping[str, StoredTensor]]
    unused: Sequence[str]
    is_v_prediction: bool
    is_zero_snr: bool

    @property
    def is_refiner(self) -> bool:
        """Whether it has the second text encoder alone."""
        return "text_encoder" not in self.networks


def read_single_file(path: Path) -> SingleFile:
    """Find the networks in a single file.

    Raises:
        CheckpointError: it is not safetensors, or holds no whole SDXL model.
    """
    found = {tensor.key: tensor for tensor in read_header(path)}
    _check_family(path, found)
    text_encoders = {
        "text_encoder": {
            # Some files keep a projection besides, which the U-Net is not told.
            name: tensor
            for name, tensor in _without(found, _CLIP).items()
            if name.startswith("text_model.")
        },
        "text_encoder_2": open_clip_tensors(
            _without(found, _OPEN_CLIP) or _without(found, _REFINER_OPEN_CLIP)
        ),
    }
    networks = {
        **{name: tensors for name, tensors in text_encoders.items() if tensors},
        "unet": _unet_tensors(path, _without(found, _UNET)),
        "vae": vae_tensors(_without(found, _VAE)),
    }
    missing = [name for name in ("text_encoder_2", "vae") if not networks.get(name)]
    if missing:
        raise CheckpointError(
            f"{path}: got no {' and no '.join(missing)}, want a whole SDXL model in one file. "
            "Some are published without a VAE or text encoders; take one that has them."
        )
    prefixes = (_UNET, _VAE, _CLIP, _OPEN_CLIP, _REFINER_OPEN_CLIP)
    return SingleFile(
        path=path,
        networks=networks,
        unused=tuple(sorted(key for key in found if not key.startswith(prefixes))),
        is_v_prediction="v_pred" in found,
        is_zero_snr="ztsnr" in found,
    )


def _check_family(path: Path, found: Mapping[str, StoredTensor]) -> None:
    """Refuse other models and other layouts with what they are."""
    if f"{_UNET}input_blocks.0.0.weight" in found and f"{_UNET}label_emb.0.0.weight" in found:
        if _PLAYGROUND in found:
            raise CheckpointError(
                f"{path}: got {_PLAYGROUND!r}, as Playground v2.5 has, want SDXL's noise levels. "
                "Its EDM schedule is not supported; take another model."
            )
        scaled = [key for key in found if key.endswith(("scaled_fp8", ".scale_weight"))]
        if scaled:
            raise CheckpointError(
                f"{path}: got {scaled[0]!r}, want weights without scales of their own. Take the "
                "model in fp16, or in plain fp8."
            )
        return
    first = ", ".join(sorted(found)[:3]) or "no tensors"
    if any(key.startswith("cond_stage_model.") for key in found):
        what = "Stable Diffusion 1 or 2"
    elif any(key.startswith(("down_blocks.", "mid_block.")) for key in found):
        what = "one network in diffusers' names; name the folder that holds all of them"
    else:
        what = "another model, or a part of one"
    raise CheckpointError(
        f"{path}: got {first}, want SDXL in its original layout, with "
        f"{_UNET}input_blocks.0.0.weight and {_UNET}label_emb.0.0.weight. This is {what}."
    )


def _without(found: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in found.items()
        if key.startswith(prefix) and not key.endswith(_NOT_WEIGHTS)
    }


def _unet_tensors(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    layers = _layers_per_block(tensors)
    named = {unet_name(name, layers_per_block=layers): (name, tensors[name]) for name in tensors}
    if None in named:
        raise CheckpointError(
            f"{path}: got {_UNET}{named[None][0]}, want the names of SDXL's U-Net. It is another "
            "model, or has tensors of another tool's besides."
        )
    return {name: tensor for name, (_, tensor) in named.items() if name is not None}


def _layers_per_block(tensors: Mapping[str, StoredTensor]) -> int:
    """Blocks before the first that halves the picture; block 0 is conv_in."""
    halving = [int(name.split(".")[1]) for name in tensors if name.endswith(".0.op.weight")]
    return min(halving, default=3) - 1
