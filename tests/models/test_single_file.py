"""What a single file tells: its kind, its networks, and configs from shapes."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from triptych.errors import CheckpointError
from triptych.models import published
from triptych.models.single_file import SingleFile, read_single_file
from triptych.models.single_file_configs import model_index, network_configs, scheduler_config
from triptych.models.stored_tensor import StoredTensor
from triptych.testing import tiny_checkpoint, write_single_file


def tensors_of(network: torch.nn.Module) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            file=Path("model.safetensors"), key=name, shape=tuple(tensor.shape), dtype="F16"
        )
        for name, tensor in network.named_parameters()
    }


def published_file(unet: Mapping[str, object]) -> SingleFile:
    """A file of SDXL's full size, as its header would say."""
    with init_empty_weights():
        networks = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**published.TEXT_ENCODER)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**published.TEXT_ENCODER_2)
            ),
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**published.VAE),
        }
    if unet is published.REFINER_UNET:
        del networks["text_encoder"]
    return SingleFile(
        path=Path("model.safetensors"),
        networks={name: tensors_of(network) for name, network in networks.items()},
        unused=(),
        is_v_prediction=False,
        is_zero_snr=False,
    )


def plain(config: Mapping[str, object]) -> object:
    """As JSON would keep it: tuples are lists."""
    return json.loads(json.dumps(config))


INPAINT_UNET = {**published.UNET, "in_channels": 9}


@pytest.mark.slow
@pytest.mark.parametrize(
    "unet",
    [published.UNET, published.REFINER_UNET, INPAINT_UNET],
    ids=["base", "refiner", "inpaint"],
)
def test_published_models_have_the_published_configs(unet: Mapping[str, object]) -> None:
    configs = network_configs(published_file(unet))
    with init_empty_weights():
        found = UNet2DConditionModel.from_config(dict(configs["unet"]))
        expected = UNet2DConditionModel(**unet)
        vae = AutoencoderKL.from_config(dict(configs["vae"]))
        expected_vae = AutoencoderKL(**published.VAE)
    # The depth of a level without attention is read by nothing: the modules are compared below.
    others = {"transformer_layers_per_block": None, "_class_name": None}
    assert plain({**found.config, **others}) == plain({**expected.config, **others})
    assert tensors_of(found) == tensors_of(expected)
    assert plain({**vae.config, "_class_name": None}) == plain(
        {**expected_vae.config, "_class_name": None}
    )
    for name, numbers in (
        ("text_encoder", published.TEXT_ENCODER),
        ("text_encoder_2", published.TEXT_ENCODER_2),
    ):
        if name in configs:
            assert {key: configs[name][key] for key in numbers} == dict(numbers)
    assert ("text_encoder" in configs) == (unet is not published.REFINER_UNET)


@pytest.mark.parametrize(
    ("unet", "pipeline"),
    [
        (published.UNET, "StableDiffusionXLPipeline"),
        (published.REFINER_UNET, "StableDiffusionXLImg2ImgPipeline"),
        (INPAINT_UNET, "StableDiffusionXLInpaintPipeline"),
    ],
    ids=["base", "refiner", "inpaint"],
)
@pytest.mark.slow
def test_the_index_names_the_pipeline_of_the_model_s_kind(
    unet: Mapping[str, object], pipeline: str
) -> None:
    index = model_index(published_file(unet))
    is_refiner = "Img2Img" in pipeline
    assert index["_class_name"] == pipeline
    assert (index["text_encoder"] == (None, None)) == is_refiner
    assert index["force_zeros_for_empty_prompt"] == (not is_refiner)


@pytest.fixture(scope="module")
def single(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(
        checkpoint,
        tmp_path_factory.mktemp("single") / "model.safetensors",
        extra=("v_pred", "ztsnr", "alphas_cumprod"),
    )


def test_keys_of_no_network_are_told(single: Path) -> None:
    assert read_single_file(single).unused == ("alphas_cumprod", "v_pred", "ztsnr")


def test_empty_keys_say_how_the_model_was_trained(single: Path, checkpoint: Path) -> None:
    config = scheduler_config(read_single_file(single))
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is True
    plain = read_single_file(write_single_file(checkpoint, single.with_name("plain.safetensors")))
    assert scheduler_config(plain) == {
        "_class_name": "EulerDiscreteScheduler",
        **published.SCHEDULER,
    }
    assert scheduler_config(plain, {"a": 1}) == {"a": 1}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_single_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["cond_stage_model.transformer.x"], "Stable Diffusion 1 or 2"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one network in diffusers' names"),
        (["lora_unet_x.lora_down.weight"], "another model, or a part of one"),
        ([], "got no tensors"),
    ],
)
def test_other_files_are_refused_for_what_they_are(
    keys: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, path)
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("edm_mean", "Playground"),
        ("model.diffusion_model.scaled_fp8", "want weights without scales of their own"),
        ("model.diffusion_model.input_blocks.4.1.norm.weight.scale_weight", "scales of their own"),
        ("model.diffusion_model.extra.weight", "want the names of SDXL's U-Net"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(
    key: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = write_single_file(checkpoint, tmp_path / "model.safetensors", extra=(key,))
    assert message in refusal(path)


def test_a_file_without_a_text_encoder_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tiny_checkpoint(tmp_path / "tiny")
    tensors = load_file(write_single_file(folder, tmp_path / "whole.safetensors"))
    kept = {name: tensor for name, tensor in tensors.items() if "embedders.1" not in name}
    path = tmp_path / "part.safetensors"
    save_file(kept, path)
    assert "got no text_encoder_2" in refusal(path)


def test_sizes_that_are_not_sdxl_s_want_configs(checkpoint: Path, tmp_path: Path) -> None:
    single = read_single_file(write_single_file(checkpoint, tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match="--config"):
        network_configs(single)
