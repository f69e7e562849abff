import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triptych.errors import CheckpointError
from triptych.models.sdxl import (
    COMPONENTS,
    SdxlConfig,
    component_precision,
    component_spec,
    read_sdxl_config,
)
from triptych.testing import tiny
from triptych.types import ComponentName, Precision


@pytest.fixture
def configs(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint's configs, without weights."""
    return shutil.copytree(
        checkpoint, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors")
    )


def change(path: Path, **changes: object) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def make_refiner(folder: Path) -> None:
    change(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    width = tiny.PROJECTION_DIM + 5 * tiny.TIME_ID_DIM
    change(folder / "unet" / "config.json", projection_class_embeddings_input_dim=width)
    shutil.rmtree(folder / "text_encoder")


def test_the_base_model_is_read_from_its_configs(configs: Path) -> None:
    config = read_sdxl_config(configs)
    assert config.kind == "base"
    assert config.components == COMPONENTS
    assert config.num_time_ids == 6
    assert config.text_encoders["text_encoder"].hidden_size == tiny.TEXT_ENCODER["hidden_size"]
    assert config.text_encoders["text_encoder_2"].projection_dim == tiny.PROJECTION_DIM
    assert config.cross_attention_dim == tiny.UNET["cross_attention_dim"]
    assert config.sample_size == tiny.UNET["sample_size"]
    assert config.vae_scale_factor == 8
    assert config.scaling_factor == tiny.VAE["scaling_factor"]
    assert config.force_upcast
    assert config.force_zeros_for_empty_prompt
    assert config.latents_mean is None


def test_the_refiner_has_one_text_encoder_and_five_time_ids(configs: Path) -> None:
    make_refiner(configs)
    config = read_sdxl_config(configs)
    assert config.kind == "refiner"
    assert config.components == ("text_encoder_2", "unet", "vae_encoder", "vae_decoder")
    time_ids = component_spec("unet", config).inputs[-1]
    assert time_ids.shape == ("batch", 5)


@pytest.mark.parametrize("num_time_ids", [0, 4, 7])
def test_another_number_of_time_ids_is_refused(num_time_ids: int, configs: Path) -> None:
    width = tiny.PROJECTION_DIM + num_time_ids * tiny.TIME_ID_DIM
    change(configs / "unet" / "config.json", projection_class_embeddings_input_dim=width)
    with pytest.raises(CheckpointError, match=f"got {num_time_ids} time_ids"):
        read_sdxl_config(configs)


def test_a_unet_without_added_conditioning_is_not_sdxl(configs: Path) -> None:
    change(configs / "unet" / "config.json", addition_embed_type=None)
    with pytest.raises(CheckpointError, match="not an SDXL U-Net"):
        read_sdxl_config(configs)


def test_a_unet_that_is_told_the_guidance_scale_is_refused(configs: Path) -> None:
    change(configs / "unet" / "config.json", time_cond_proj_dim=256)
    with pytest.raises(CheckpointError, match="got time_cond_proj_dim 256, want none"):
        read_sdxl_config(configs)


def test_a_unet_for_inpainting_is_known_by_its_channels(configs: Path) -> None:
    assert not read_sdxl_config(configs).is_inpainting
    change(configs / "unet" / "config.json", in_channels=9)
    assert read_sdxl_config(configs).is_inpainting


def test_a_pipeline_without_text_encoder_2_is_not_sdxl(configs: Path) -> None:
    change(configs / "model_index.json", text_encoder_2=[None, None])
    with pytest.raises(CheckpointError, match="no text_encoder_2"):
        read_sdxl_config(configs)


def test_the_vae_config_may_lie_in_optimums_folder(configs: Path) -> None:
    expected = read_sdxl_config(configs)
    (configs / "vae").rename(configs / "vae_decoder")
    assert read_sdxl_config(configs) == expected


def test_a_config_written_before_force_upcast_keeps_the_vae_in_fp32(configs: Path) -> None:
    path = configs / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["force_upcast"]
    path.write_text(json.dumps(config))
    assert read_sdxl_config(configs).force_upcast


def test_channel_statistics_are_read_where_a_vae_has_them(configs: Path) -> None:
    change(configs / "vae" / "config.json", latents_mean=[0, 1, 2, 3], latents_std=[1, 1, 1, 2])
    config = read_sdxl_config(configs)
    assert config.latents_mean == (0.0, 1.0, 2.0, 3.0)
    assert config.latents_std == (1.0, 1.0, 1.0, 2.0)


def test_the_scale_factor_follows_the_vaes_levels(configs: Path) -> None:
    change(configs / "vae" / "config.json", block_out_channels=[8, 8, 8])
    config = read_sdxl_config(configs)
    assert config.vae_scale_factor == 4
    image = component_spec("vae_decoder", config).outputs[0]
    assert image.shape == ("batch", 3, "4*height", "4*width")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("unet/config.json", "sample_size"),
        ("unet/config.json", "projection_class_embeddings_input_dim"),
        ("vae/config.json", "scaling_factor"),
        ("vae/config.json", "block_out_channels"),
        ("text_encoder/config.json", "hidden_size"),
    ],
)
def test_a_missing_number_is_named(file: str, name: str, configs: Path) -> None:
    change(configs / file, **{name: None})
    with pytest.raises(CheckpointError, match=name):
        read_sdxl_config(configs)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("unet/config.json", "addition_time_embed_dim", 0),
        ("unet/config.json", "in_channels", -4),
        ("vae/config.json", "block_out_channels", []),
        ("vae/config.json", "scaling_factor", 0),
        ("vae/config.json", "scaling_factor", math.nan),
        ("vae/config.json", "latents_mean", [0, 0, 0]),
        ("vae/config.json", "latents_std", [1, 1, 1, "1"]),
    ],
)
def test_a_number_that_cannot_be_is_named(
    file: str, name: str, value: object, configs: Path
) -> None:
    change(configs / file, **{name: value})
    with pytest.raises(CheckpointError, match=name):
        read_sdxl_config(configs)


NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON)
@example(value=0)
@example(value=-1)
@example(value=[])
@example(value=math.nan)
def test_any_config_is_read_or_refused(value: object, configs: Path) -> None:
    """One setting after the other is whatever JSON can say; an error names the config."""
    for name in ("model_index.json", *(f"{part}/config.json" for part in NETWORKS)):
        file = configs / name
        sound = file.read_text()
        for key in json.loads(sound):
            change(file, **{key: value})
            refusal = ""
            try:
                read_sdxl_config(configs)
            except CheckpointError as error:
                refusal = str(error)
            finally:
                file.write_text(sound)
            assert not refusal or str(configs) in refusal


@pytest.fixture
def config(checkpoint: Path) -> SdxlConfig:
    return read_sdxl_config(checkpoint)


@pytest.mark.parametrize(
    ("component", "inputs", "outputs"),
    [
        (
            "text_encoder",
            {"input_ids": "int64 [batch, 77]"},
            {"hidden_states": "float32 [batch, 77, 32]"},
        ),
        (
            "text_encoder_2",
            {"input_ids": "int64 [batch, 77]"},
            {
                "hidden_states": "float32 [batch, 77, 48]",
                "text_embeds": "float32 [batch, 64]",
            },
        ),
        (
            "unet",
            {
                "sample": "float32 [batch, 4, height, width]",
                "timestep": "float32 []",
                "encoder_hidden_states": "float32 [batch, 77, 80]",
                "text_embeds": "float32 [batch, 64]",
                "time_ids": "float32 [batch, 6]",
            },
            {"noise_pred": "float32 [batch, 4, height, width]"},
        ),
        (
            "vae_encoder",
            {"image": "float32 [batch, 3, 8*height, 8*width]"},
            {"moments": "float32 [batch, 8, height, width]"},
        ),
        (
            "vae_decoder",
            {"latents": "float32 [batch, 4, height, width]"},
            {"image": "float32 [batch, 3, 8*height, 8*width]"},
        ),
        (
            "preview_decoder",
            {"latents": "float32 [batch, 4, height, width]"},
            {"image": "float32 [batch, 3, 8*height, 8*width]"},
        ),
    ],
)
def test_the_contract_of_each_component(
    component: ComponentName,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    config: SdxlConfig,
) -> None:
    spec = component_spec(component, config)
    shown = [{t.name: t.text() for t in tensors} for tensors in (spec.inputs, spec.outputs)]
    assert shown == [dict(inputs), dict(outputs)]
    assert [t.name for t in spec.inputs] == list(inputs)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("component", [*COMPONENTS, "preview_decoder"])
def test_only_a_vae_that_overflows_keeps_fp32(
    component: ComponentName, precision: Precision, configs: Path
) -> None:
    config = read_sdxl_config(configs)
    kept = component.startswith("vae")
    assert component_precision(component, config, precision) == ("fp32" if kept else precision)
    change(configs / "vae" / "config.json", force_upcast=False)
    assert component_precision(component, read_sdxl_config(configs), precision) == precision
