from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.errors import CheckpointError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.lora import apply_lora, lora_file
from triptych.models.lora_names import module_key
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weights import read_tensor

Networks = Mapping[str, Mapping[str, StoredTensor]]

TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
GENERATOR = torch.Generator().manual_seed(0)
PAIR = {
    f"unet.{TO_K}.lora_A.weight": torch.randn(2, 80, generator=GENERATOR),
    f"unet.{TO_K}.lora_B.weight": torch.randn(16, 2, generator=GENERATOR),
}


@pytest.fixture(scope="module")
def networks(checkpoint: Path) -> Networks:
    opened = open_checkpoint(checkpoint)
    return {name: opened.network_tensors(name) for name in ("unet", "vae", "text_encoder_2")}


def saved(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    path = folder / "lora.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    return path


def changed(networks: Networks, file: Path, *, scale: float = 1.0) -> Networks:
    return apply_lora(networks, file, scale=scale, layers_per_block=2)


def refusal(networks: Networks, folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = saved(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        changed(networks, path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def difference(networks: Networks, other: Networks, name: str) -> torch.Tensor:
    before = read_tensor(networks["unet"][name])
    return read_tensor(other["unet"][name]) - before


def test_only_the_named_weight_is_changed(networks: Networks, tmp_path: Path) -> None:
    made = changed(networks, saved(tmp_path, PAIR), scale=0.5)
    expected = 0.5 * PAIR[f"unet.{TO_K}.lora_B.weight"] @ PAIR[f"unet.{TO_K}.lora_A.weight"]
    found = difference(networks, made, f"{TO_K}.weight")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert made["vae"] == networks["vae"]
    unchanged = {name for name, tensor in made["unet"].items() if not tensor.updates}
    assert networks["unet"].keys() - unchanged == {f"{TO_K}.weight"}


def test_scale_0_is_the_base_itself(networks: Networks, tmp_path: Path) -> None:
    assert changed(networks, saved(tmp_path, PAIR), scale=0.0) == networks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_alpha_is_divided_by_the_rank(
    dtype: torch.dtype, networks: Networks, tmp_path: Path
) -> None:
    alpha = {f"unet.{TO_K}.alpha": torch.tensor(3.0, dtype=dtype)}
    made = changed(networks, saved(tmp_path, {**PAIR, **alpha}), scale=-2.0)
    [update] = made["unet"][f"{TO_K}.weight"].updates
    assert update.scale == -2.0 * 3.0 / 2


def test_a_convolution_of_three_parts_is_read(networks: Networks, tmp_path: Path) -> None:
    flat = "lora_unet_input_blocks_1_0_in_layers_2"
    parts = {
        f"{flat}.lora_up.weight": torch.randn(8, 3, 1, 1, generator=GENERATOR),
        f"{flat}.lora_mid.weight": torch.randn(3, 2, 3, 3, generator=GENERATOR),
        f"{flat}.lora_down.weight": torch.randn(2, 8, 1, 1, generator=GENERATOR),
    }
    made = changed(networks, saved(tmp_path, parts))
    up, mid, down = (tensor.double() for tensor in parts.values())
    conv = torch.nn.functional.conv2d
    image = torch.randn(1, 8, 6, 6, generator=GENERATOR, dtype=torch.float64)
    expected = conv(conv(conv(image, down), mid), up)
    found = conv(image, difference(networks, made, f"{CONV}.weight").double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_linear_layer_may_be_a_convolution_in_the_file(
    networks: Networks, tmp_path: Path
) -> None:
    shaped = {name: tensor[:, :, None, None] for name, tensor in PAIR.items()}
    found = changed(networks, saved(tmp_path, shaped))
    expected = changed(networks, saved(tmp_path, PAIR))
    name = f"{TO_K}.weight"
    assert torch.equal(difference(networks, found, name), difference(networks, expected, name))


@pytest.mark.parametrize(
    "name",
    [
        "unet.down_blocks.9.attentions.0.proj_in.lora_A.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "transformer.single_blocks.0.linear1.lora_A.weight",
    ],
)
def test_a_tensor_that_changes_no_weight_is_named(
    name: str, networks: Networks, tmp_path: Path
) -> None:
    message = refusal(networks, tmp_path, {**PAIR, name: torch.zeros(2, 2)})
    assert f"got {name!r}, which changes no weight of this model" in message
    assert "text_encoder_2" in message


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.weight", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("diff", "a full difference"),
    ],
)
def test_other_methods_are_refused_by_name(
    suffix: str, method: str, networks: Networks, tmp_path: Path
) -> None:
    message = refusal(networks, tmp_path, {**PAIR, f"unet.{TO_K}.{suffix}": torch.zeros(16)})
    assert f"got {method} ('unet.{TO_K}.{suffix}'), want a LoRA" in message


def test_what_is_no_lora_is_refused(networks: Networks, tmp_path: Path) -> None:
    tensors = {f"{TO_K}.weight": torch.zeros(16, 80)}
    assert f"got '{TO_K}.weight', want the names of a LoRA" in refusal(networks, tmp_path, tensors)
    assert "got no tensors" in refusal(networks, tmp_path, {})


@pytest.mark.parametrize("absent", ["A", "B"])
def test_a_missing_factor_is_named(absent: str, networks: Networks, tmp_path: Path) -> None:
    tensors = {name: value for name, value in PAIR.items() if f"lora_{absent}" not in name}
    kept = "up" if absent == "A" else "down"
    assert f"got only {kept}, want both factors" in refusal(networks, tmp_path, tensors)


@pytest.mark.parametrize(
    ("up", "down"),
    [((16, 2), (2, 64)), ((8, 2), (2, 80)), ((16, 2), (3, 80)), ((80, 2), (2, 16)), ((16,), (80,))],
)
def test_factors_of_another_shape_are_named(
    up: tuple[int, ...], down: tuple[int, ...], networks: Networks, tmp_path: Path
) -> None:
    tensors = {
        f"unet.{TO_K}.lora_A.weight": torch.zeros(down),
        f"unet.{TO_K}.lora_B.weight": torch.zeros(up),
    }
    message = refusal(networks, tmp_path, tensors)
    assert f"got factors [{list(up)}, {list(down)}], want a product [16, 80]" in message


def test_two_names_of_one_weight_are_refused(networks: Networks, tmp_path: Path) -> None:
    again = f"lora_unet_{TO_K.replace('.', '_')}.lora_down.weight"
    message = refusal(networks, tmp_path, {**PAIR, again: torch.zeros(2, 80)})
    assert "they change the same weight" in message


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused(
    alpha: float, networks: Networks, tmp_path: Path
) -> None:
    tensors = {**PAIR, f"unet.{TO_K}.alpha": torch.tensor(alpha)}
    assert "want a number" in refusal(networks, tmp_path, tensors)


def test_metadata_that_is_no_json_is_refused(networks: Networks, tmp_path: Path) -> None:
    path = saved(tmp_path, PAIR, lora_adapter_metadata="{")
    with pytest.raises(CheckpointError, match="want JSON"):
        changed(networks, path)


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model.", "base_model.model.unet."])
def test_names_without_a_network_are_the_unet_s(prefix: str) -> None:
    key = module_key(f"{prefix}{TO_K}", layers_per_block=2)
    assert key == ("unet", TO_K.replace(".", "_"))


def test_a_folder_is_searched_for_its_lora(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got no such file"):
        lora_file(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.touch()
    assert lora_file(tmp_path) == lora_file(file) == file


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_a_pickled_lora_is_refused(suffix: str, networks: Networks, tmp_path: Path) -> None:
    path = tmp_path / f"lora{suffix}"
    path.touch()
    with pytest.raises(CheckpointError, match="any code"):
        changed(networks, lora_file(path))
