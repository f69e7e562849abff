"""What tools call the modules that a LoRA changes, and which weight of the model each is.

Every spelling is brought to one: the network, and the module's name in diffusers with "_" between
its parts.

Source:
    diffusers 0.39 utils/state_dict_utils.py and loaders/lora_conversion_utils.py; Kohya's
    sd-scripts, networks/lora.py.
"""

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

from triptych.errors import CheckpointError
from triptych.models.original_layout import unet_name
from triptych.models.stored_tensor import StoredTensor

ModuleKey: TypeAlias = tuple[str, str]
"""A network's folder, and the flat name of one of its modules."""

_PREFIXES: Final = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}


def weight_keys(
    networks: Mapping[str, Mapping[str, StoredTensor]],
) -> dict[ModuleKey, str]:
    """The weight of every module that a LoRA can change, by network and flat module name."""
    keys: dict[ModuleKey, str] = {}
    for network in ("unet", "text_encoder", "text_encoder_2"):
        for name, tensor in networks.get(network, {}).items():
            if name.endswith(".weight") and len(tensor.shape) in (2, 4):
                key = (network, name.removesuffix(".weight").replace(".", "_"))
                if key in keys:
                    raise CheckpointError(
                        f"{network}: got {name!r} and {keys[key]!r}, want names that differ by "
                        "more than a dot."
                    )
                keys[key] = name
    return keys


def module_key(module: str, *, layers_per_block: int) -> ModuleKey:
    """The network and flat name of a module, from any tool's name of it.

    Args:
        module: as a LoRA file has it, without what names the tensor.
        layers_per_block: of the U-Net; the original layout counts blocks by it.
    """
    name = module.removeprefix("base_model.model.")
    found = [prefix for prefix in _PREFIXES if name.startswith(prefix)]
    # Attention processors were saved without a prefix before diffusers 0.17.
    network = _PREFIXES[found[0]] if found else "unet"
    flat = name.removeprefix(found[0] if found else "").replace(".processor.", ".")
    flat = flat.replace(".", "_")
    if network != "unet":
        return network, re.sub(r"(self_attn)_to_(q|k|v|out)$", r"\1_\2_proj", flat)
    flat = unet_name(flat, layers_per_block=layers_per_block, separator="_") or flat
    return network, re.sub(r"(attn\d_to_out)$", r"\1_0", flat)
