"""A LoRA file matched with a model's weights: which it changes, by what, and how strongly.

Names are read as diffusers, PEFT and Kohya's scripts write them. Only headers are read, and alphas,
which are single numbers.

Source:
    Hu et al. 2021, arXiv:2106.09685. Alphas: peft 0.21 tuners/lora/layer.py, update_layer.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias, final

from triptych.errors import CheckpointError
from triptych.models.configs import read_json
from triptych.models.lora_names import ModuleKey, module_key, weight_keys
from triptych.models.stored_tensor import (
    FileTensor,
    LowRankUpdate,
    StoredTensor,
    read_file_metadata,
    read_header,
)
from triptych.models.weights import stream_tensors

Networks: TypeAlias = Mapping[str, Mapping[str, StoredTensor]]

_TENSOR = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?[._](?P<part>A|B|down|up|mid)(?:\.\w+)?\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+?)(?:[._]lora)?\.alpha")
_PARTS: Final = {"A": "down", "B": "up"}
"""PEFT's names of the two factors."""

_OTHER_METHODS: Final = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w1_a": "LoHa",
    "hada_w2_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w2": "LoKr",
    "lokr_w1_a": "LoKr",
    "lokr_w2_a": "LoKr",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "diff": "a full difference",
    "diff_b": "a full difference",
}
"""How tensors of methods end that add no low-rank product: LyCORIS, and PEFT's DoRA."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Factors:
    """The tensors of one module in a LoRA file, by part: down, up, mid, alpha."""

    module: str
    parts: dict[str, StoredTensor] = field(default_factory=dict)


def apply_lora(
    networks: Networks, file: Path, *, scale: float, layers_per_block: int
) -> dict[str, Mapping[str, StoredTensor]]:
    """The networks with a LoRA added to their weights; nothing is added at scale 0.

    Args:
        networks: the weights of each network, by diffusers' names.
        file: the LoRA, in safetensors.
        scale: times alpha / rank.
        layers_per_block: of the U-Net; the original layout counts blocks by it.

    Raises:
        CheckpointError: a tensor fits no weight, a factor is missing, or it is no LoRA.
    """
    weights = weight_keys(networks)
    rules = _AlphaRules(rules=_read_metadata(file))
    grouped = _group(file, layers_per_block=layers_per_block)
    alphas = _read_alphas(grouped)
    changed = {network: dict(tensors) for network, tensors in networks.items()}
    for key, factors in grouped.items():
        if key not in weights:
            raise CheckpointError(_unmatched_message(file, factors, weights))
        network, name = key[0], weights[key]
        tensor = changed[network][name]
        update = _update(factors, tensor, file=file)
        rank = factors.parts["down"].shape[0]
        strength = (
            alphas[key] / rank
            if key in alphas
            else rules.strength(network, name.removesuffix(".weight"), rank=rank)
        )
        if not math.isfinite(strength):
            raise CheckpointError(
                f"{file} {factors.module!r}: got {strength} for alpha / rank, want a number."
            )
        if scale != 0:
            updates = (*tensor.updates, replace(update, scale=scale * strength))
            changed[network][name] = replace(tensor, updates=updates)
    return dict(changed)


def _unmatched_message(file: Path, factors: _Factors, weights: Mapping[ModuleKey, str]) -> str:
    names = sorted(tensor.key for tensor in factors.parts.values())
    networks = dict.fromkeys(network for network, _ in weights)
    return (
        f"{file}: got {names[0]!r}, which changes no weight of this model, want names of modules "
        f"in its {', '.join(networks)}. Was the LoRA made for this kind of model?"
    )


def _group(file: Path, *, layers_per_block: int) -> dict[ModuleKey, _Factors]:
    """A LoRA's tensors by what they change."""
    grouped: dict[ModuleKey, _Factors] = {}
    for tensor in read_header(file):
        method = _OTHER_METHODS.get(re.sub(r"\.weight$", "", tensor.key).rpartition(".")[2])
        if method is not None:
            raise CheckpointError(
                f"{file}: got {method} ({tensor.key!r}), want a LoRA. Fuse it with the tool that "
                "made it, and compose of the result."
            )
        found = _TENSOR.fullmatch(tensor.key) or _ALPHA.fullmatch(tensor.key)
        if found is None:
            raise CheckpointError(
                f"{file}: got {tensor.key!r}, want the names of a LoRA: lora_A and lora_B, or "
                "lora_down, lora_up and alpha."
            )
        part = found.groupdict().get("part", "alpha")
        key = module_key(found["module"], layers_per_block=layers_per_block)
        factors = grouped.setdefault(key, _Factors(module=found["module"]))
        if _PARTS.get(part, part) in factors.parts:
            raise CheckpointError(
                f"{file}: got {tensor.key!r} and {factors.parts[_PARTS.get(part, part)].key!r}, "
                "want one of them: they change the same weight."
            )
        factors.parts[_PARTS.get(part, part)] = tensor
    if not grouped:
        raise CheckpointError(f"{file}: got no tensors, want a LoRA.")
    return grouped


def _read_alphas(grouped: Mapping[ModuleKey, _Factors]) -> dict[ModuleKey, float]:
    stored = {
        str(number): factors.parts["alpha"]
        for number, factors in enumerate(grouped.values())
        if "alpha" in factors.parts
    }
    numbers = {int(number): float(tensor) for number, tensor in stream_tensors(stored)}
    return {key: numbers[number] for number, key in enumerate(grouped) if number in numbers}


def _update(factors: _Factors, weight: StoredTensor, *, file: Path) -> LowRankUpdate:
    """The product of a module's factors, which must be shaped as its weight; of scale 1."""
    up, mid, down = (factors.parts.get(part) for part in ("up", "mid", "down"))
    if up is None or down is None:
        raise CheckpointError(
            f"{file} {factors.module!r}: got only {', '.join(factors.parts)}, want both factors, "
            "up and down. Copy or download the file again."
        )
    shapes = [part.shape for part in (up, mid, down) if part is not None]
    if not _is_product(shapes, weight.shape):
        raise CheckpointError(
            f"{file} {factors.module!r}: got factors {[list(shape) for shape in shapes]}, want a "
            f"product {list(weight.shape)}. The LoRA was made for another model."
        )
    return LowRankUpdate(
        up=FileTensor(file=file, key=up.key),
        down=FileTensor(file=file, key=down.key),
        mid=None if mid is None else FileTensor(file=file, key=mid.key),
        scale=1.0,
    )


def _is_product(shapes: Sequence[tuple[int, ...]], wanted: tuple[int, ...]) -> bool:
    """Whether up, perhaps mid, and down make a weight; a linear one may be a 1 x 1 convolution."""
    if any(len(shape) < 2 for shape in shapes):
        return False
    up, down = shapes[0], shapes[-1]
    is_chained = all(one[1] == other[0] for one, other in pairwise(shapes))
    made = (up[0], down[1], *shapes[1][2:])
    return is_chained and made[0] == wanted[0] and math.prod(made) == math.prod(wanted)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _AlphaRules:
    """What a file's metadata says of alphas: PEFT's settings, by network and name."""

    rules: Mapping[str, object]

    def strength(self, network: str, module: str, *, rank: int) -> float:
        """Times up @ down: alpha / rank, or alpha / sqrt(rank) if so asked; 1 where nothing is."""
        alpha = self.rules.get(f"{network}.lora_alpha")
        patterns = self.rules.get(f"{network}.alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            # peft utils/other.py, get_pattern_key: the first that matches the module's end.
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        if not isinstance(alpha, int | float):
            return 1.0
        is_root = bool(self.rules.get(f"{network}.use_rslora"))
        return alpha / (math.sqrt(rank) if is_root else rank)


def _read_metadata(file: Path) -> Mapping[str, object]:
    """What diffusers wrote into the header, or PEFT into adapter_config.json; else empty."""
    config_path = file.with_name("adapter_config.json")
    if config_path.is_file():  # PEFT saves one network; only the U-Net's names need no prefix
        return {f"unet.{name}": value for name, value in read_json(config_path).items()}
    text = read_file_metadata(file).get("lora_adapter_metadata", "{}")
    try:
        rules = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{file} 'lora_adapter_metadata': got {error}, want JSON. Copy the file again."
        ) from error
    return rules if isinstance(rules, dict) else {}


def lora_file(path: Path) -> Path:
    """The weights of a LoRA: a file, or what diffusers or PEFT saved in a folder.

    Raises:
        CheckpointError: there is no such file.
    """
    names = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    found = [path / name for name in names if (path / name).is_file()]
    if found:
        return found[0]
    if not path.is_file():
        raise CheckpointError(
            f"{path}: got no such file, want a LoRA in safetensors, or a folder with {names[0]}."
        )
    return path
