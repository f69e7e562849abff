"""LoRAs fused by composing, beside diffusers' load_lora_weights and fuse_lora."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from triptych.models.modules import load_module
from triptych.types import ComponentName
from triptych.workflows.compose import ComposeRequest, ScaledLora, compose_checkpoint

pytestmark = pytest.mark.slow

Tensors: TypeAlias = dict[str, torch.Tensor]

NETWORKS: tuple[ComponentName, ...] = ("unet", "text_encoder", "text_encoder_2")
UNET_MODULES = [
    *("attn1.to_q", "attn2.to_k", "attn1.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("proj_in", "proj_out", "conv1", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"),
]
TEXT_MODULES = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture
def pipeline(checkpoint: Path) -> StableDiffusionXLPipeline:
    """One of its own: a fused LoRA stays."""
    return StableDiffusionXLPipeline.from_pretrained(checkpoint)


def fused(pipeline: StableDiffusionXLPipeline, loras: Mapping[Path, float]) -> Tensors:
    """diffusers' weights with LoRAs fused, the networks' names before them."""
    for index, (file, scale) in enumerate(loras.items()):
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"{index}")
        pipeline.fuse_lora(adapter_names=[f"{index}"], lora_scale=scale)
        pipeline.unload_lora_weights()
    return {
        f"{network}.{name}": tensor
        for network in NETWORKS
        for name, tensor in getattr(pipeline, network).state_dict().items()
        if not name.endswith("position_ids")
    }


def composed(checkpoint: Path, loras: Mapping[Path, float], folder: Path) -> Tensors:
    request = ComposeRequest(
        checkpoint=checkpoint,
        loras=tuple(ScaledLora(path=path, scale=scale) for path, scale in loras.items()),
    )
    made = compose_checkpoint(request, folder)
    return {
        f"{network}.{name.partition('.')[2]}": tensor
        for network in NETWORKS
        for name, tensor in load_module(made, network, dtype=torch.float32).state_dict().items()
    }


def assert_close(found: Tensors, expected: Tensors, unchanged: Path) -> None:
    """Every weight is as near as two orders of float32 additions, and many were changed."""
    assert found.keys() == expected.keys()
    before = StableDiffusionXLPipeline.from_pretrained(unchanged)
    num_changed = 0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
        network, _, inside = name.partition(".")
        num_changed += not torch.equal(getattr(before, network).state_dict()[inside], tensor)
    assert num_changed > 60


def add_adapters(
    pipeline: StableDiffusionXLPipeline, *, seed: int = 0, rank: int = 3, is_mixed: bool = True
) -> None:
    """A random adapter in every network; mixed, some modules have ranks and alphas of their own."""
    generator = torch.Generator().manual_seed(seed)
    for network in NETWORKS:
        is_unet = network == "unet"
        config = LoraConfig(
            r=rank,
            lora_alpha=2,
            target_modules=UNET_MODULES if is_unet else TEXT_MODULES,
            rank_pattern={"to_k": 2} if is_unet and is_mixed else {},
            alpha_pattern={"attn1.to_q": 5, "conv1": 1} if is_unet and is_mixed else {},
        )
        getattr(pipeline, network).add_adapter(config)
        for name, parameter in getattr(pipeline, network).named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * 0.2)


def state(pipeline: StableDiffusionXLPipeline) -> dict[str, Tensors]:
    return {network: get_peft_model_state_dict(getattr(pipeline, network)) for network in NETWORKS}


def save_diffusers(pipeline: StableDiffusionXLPipeline, folder: Path) -> Path:
    """As diffusers' trainers save: PEFT's names, and alphas in the metadata."""
    layers = state(pipeline)
    adapters = {network: getattr(pipeline, network) for network in NETWORKS}
    pipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        text_encoder_2_lora_layers=layers["text_encoder_2"],
        **_collate_lora_metadata(adapters),
    )
    return folder / "pytorch_lora_weights.safetensors"


def save_peft_without_alphas(pipeline: StableDiffusionXLPipeline, folder: Path) -> Path:
    layers = state(pipeline)
    pipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        text_encoder_2_lora_layers=layers["text_encoder_2"],
    )
    return folder / "pytorch_lora_weights.safetensors"


def save_kohya(pipeline: StableDiffusionXLPipeline, folder: Path) -> Path:
    return _save_kohya(pipeline, folder, module_name=lambda module: module)


def save_kohya_in_original_names(pipeline: StableDiffusionXLPipeline, folder: Path) -> Path:
    return _save_kohya(pipeline, folder, module_name=original_name)


def original_name(module: str) -> str:
    """The original layout's name of a U-Net's module: written from SDXL's blocks, not our map."""
    resnet = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    resnet["conv_shortcut"] = "skip_connection"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", module)
    if found:
        side, kind, inside = found[1], found[3], found[5]
        number = int(found[2]) * 3 + int(found[4])
        block = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        return f"{block}.{0 if kind == 'resnets' else 1}.{resnet.get(inside, inside)}"
    found = re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", module)
    if found:
        return f"input_blocks.{int(found[1]) * 3 + 3}.0.op"
    found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module)
    assert found, module
    number = 1 if found[1] == "attentions" else 2 * int(found[2])
    return f"middle_block.{number}.{resnet.get(found[3], found[3])}"


def _save_kohya(
    pipeline: StableDiffusionXLPipeline, folder: Path, *, module_name: Callable[[str], str]
) -> Path:
    """As Kohya's sd-scripts save: flat names, and an alpha beside each pair."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors: Tensors = {}
    for network, layers in state(pipeline).items():
        for key, tensor in layers.items():
            module, part = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", key).groups()  # type: ignore[union-attr]
            named = module_name(module) if network == "unet" else module
            flat = f"{prefixes[network]}_{named}".replace(".", "_")
            tensors[f"{flat}.lora_{'down' if part == 'A' else 'up'}.weight"] = tensor.contiguous()
            tensors[f"{flat}.alpha"] = torch.tensor(1.5)
    folder.mkdir()
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def save_old_processors(pipeline: StableDiffusionXLPipeline, folder: Path) -> Path:
    """As diffusers 0.20 saved: attention processors, and the text encoders' old names."""
    tensors: Tensors = {}
    for network, layers in state(pipeline).items():
        for key, tensor in layers.items():
            found = re.fullmatch(r"(.+)\.(\w+(?:\.0)?)\.lora_(A|B)\.weight", key)
            assert found
            parent, module, part = found.groups()
            part = "down" if part == "A" else "up"
            name = f"{network}.{parent}"
            if re.search(r"attn\d$", parent):
                short = module.removesuffix(".0")
                tensors[f"{name}.processor.{short}_lora.{part}.weight"] = tensor
            elif parent.endswith("self_attn"):
                tensors[f"{name}.to_{module.removesuffix('_proj')}_lora.{part}.weight"] = tensor
            elif network == "unet" and module in ("proj_in", "proj_out"):
                tensors[f"{name}.{module}.lora.{part}.weight"] = tensor
            elif network != "unet":
                tensors[f"{name}.{module}.lora_linear_layer.{part}.weight"] = tensor
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "old.safetensors"
    )
    return folder / "old.safetensors"


SAVED = (
    save_diffusers,
    save_peft_without_alphas,
    save_kohya,
    save_kohya_in_original_names,
    save_old_processors,
)


@pytest.mark.parametrize("save", SAVED)
def test_a_fused_lora_is_diffusers_own(
    save: Callable[[StableDiffusionXLPipeline, Path], Path], checkpoint: Path, tmp_path: Path
) -> None:
    trained = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    # Without alphas, diffusers takes the first module's rank for every module's alpha; here and in
    # ComfyUI each module's is its own rank.
    add_adapters(trained, is_mixed=save not in (save_peft_without_alphas, save_old_processors))
    loras = {save(trained, tmp_path / "lora"): 0.7}
    found = composed(checkpoint, loras, tmp_path / "made")
    expected = fused(StableDiffusionXLPipeline.from_pretrained(checkpoint), loras)
    assert_close(found, expected, checkpoint)


def test_several_loras_add(
    pipeline: StableDiffusionXLPipeline, checkpoint: Path, tmp_path: Path
) -> None:
    loras = {}
    for index, scale in enumerate((0.7, -0.4)):
        trained = StableDiffusionXLPipeline.from_pretrained(checkpoint)
        add_adapters(trained, seed=index, rank=2 + index)
        loras[save_diffusers(trained, tmp_path / f"{index}")] = scale
    found = composed(checkpoint, loras, tmp_path / "made")
    assert_close(found, fused(pipeline, loras), checkpoint)


def test_a_folder_that_peft_saved_is_read_with_its_config(checkpoint: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from peft import get_peft_model

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_k"], use_rslora=True)
    model = get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(tmp_path / "lora"))
    expected = model.merge_and_unload().state_dict()
    found = composed(checkpoint, {tmp_path / "lora": 1.0}, tmp_path / "made")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[f"unet.{name}"], tensor, rtol=1e-6, atol=2e-6)
