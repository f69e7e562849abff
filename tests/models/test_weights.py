from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.models.stored_tensor import FileTensor, LowRankUpdate, StoredTensor, read_header
from triptych.models.weights import read_tensor, stream_tensors

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "matrix": torch.randn(6, 4, generator=GENERATOR),
    "half": torch.randn(6, 4, generator=GENERATOR).half(),
    "kernel": torch.randn(6, 4, 3, 3, generator=GENERATOR),
    "up": torch.randn(6, 2, generator=GENERATOR),
    "down": torch.randn(2, 4, generator=GENERATOR),
    "kernel_up": torch.randn(6, 2, 1, 1, generator=GENERATOR),
    "kernel_mid": torch.randn(2, 3, 3, 3, generator=GENERATOR),
    "kernel_down": torch.randn(3, 4, 1, 1, generator=GENERATOR),
    "more": torch.randn(2, 4, generator=GENERATOR),
    "eight": torch.tensor([448.0, -0.001953125, 0.0, 17.0]).to(torch.float8_e4m3fn),
}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    return {tensor.key: tensor for tensor in read_header(tmp_path / "weights.safetensors")}


def part(stored: StoredTensor) -> FileTensor:
    return FileTensor(file=stored.file, key=stored.key)


def made(stored: StoredTensor) -> torch.Tensor:
    tensor = read_tensor(stored)
    assert tensor.shape == stored.shape
    return tensor


def test_a_plain_weight_is_mapped_not_copied(stored: dict[str, StoredTensor]) -> None:
    both = dict(stream_tensors({"one": stored["matrix"], "another": stored["matrix"]}))
    assert stored["matrix"].is_plain
    assert torch.equal(both["one"], TENSORS["matrix"])
    assert both["one"].data_ptr() == both["another"].data_ptr()


def test_rows_then_transposition_then_shape(stored: dict[str, StoredTensor]) -> None:
    matrix = stored["matrix"]
    rows = replace(matrix, rows=(2, 5), shape=(3, 4))
    assert torch.equal(made(rows), TENSORS["matrix"][2:5])
    turned = replace(matrix, rows=(2, 5), transposed=True, shape=(4, 3))
    assert torch.equal(made(turned), TENSORS["matrix"][2:5].T)
    shaped = replace(matrix, shape=(6, 4, 1, 1))
    assert torch.equal(made(shaped), TENSORS["matrix"][:, :, None, None])
    assert not rows.is_plain
    assert not turned.is_plain
    assert shaped.is_plain


def test_updates_add_in_float32_and_are_rounded_once(stored: dict[str, StoredTensor]) -> None:
    update = LowRankUpdate(up=part(stored["up"]), down=part(stored["down"]), scale=0.3)
    twice = replace(stored["half"], updates=(update, replace(update, scale=-0.1)))
    product = TENSORS["up"] @ TENSORS["down"]
    expected = (TENSORS["half"].float() + 0.3 * product - 0.1 * product).half()
    assert made(twice).dtype == torch.float16
    assert torch.equal(made(twice), expected)
    assert not twice.is_plain


def test_an_update_of_three_convolutions_is_their_sequence(stored: dict[str, StoredTensor]) -> None:
    update = LowRankUpdate(
        up=part(stored["kernel_up"]),
        mid=part(stored["kernel_mid"]),
        down=part(stored["kernel_down"]),
        scale=1.0,
    )
    image = torch.randn(1, 4, 5, 5, generator=GENERATOR)
    conv = torch.nn.functional.conv2d
    changed = conv(image, made(replace(stored["kernel"], updates=(update,))), padding=1)
    sequence = conv(image, TENSORS["kernel_down"])
    sequence = conv(conv(sequence, TENSORS["kernel_mid"], padding=1), TENSORS["kernel_up"])
    expected = conv(image, TENSORS["kernel"], padding=1) + sequence
    torch.testing.assert_close(changed, expected, rtol=1e-5, atol=1e-4)


def test_rows_are_appended_in_the_weight_s_dtype(stored: dict[str, StoredTensor]) -> None:
    longer = replace(stored["half"], appended=(part(stored["more"]),), shape=(8, 4))
    expected = torch.cat([TENSORS["half"], TENSORS["more"].half()])
    assert torch.equal(made(longer), expected)
    assert not longer.is_plain


def test_numbers_of_eight_bits_are_widened_exactly(stored: dict[str, StoredTensor]) -> None:
    assert stored["eight"].dtype == "F8_E4M3"
    assert made(stored["eight"]).dtype == torch.float16
    assert torch.equal(made(stored["eight"]).float(), TENSORS["eight"].float())


def test_weights_come_file_by_file_and_in_order(
    stored: dict[str, StoredTensor], tmp_path: Path
) -> None:
    other = tmp_path / "an earlier name.safetensors"
    save_file({"last": torch.zeros(1)}, other)
    [last] = read_header(other)
    names = ["more", "last", "down", "up"]
    assert [name for name, _ in stream_tensors({**stored, "last": last}, names)] == [
        "last",
        "more",
        "down",
        "up",
    ]


def test_a_weight_knows_its_files_and_its_size(
    stored: dict[str, StoredTensor], tmp_path: Path
) -> None:
    other = tmp_path / "lora.safetensors"
    away = FileTensor(file=other, key="mid")
    update = LowRankUpdate(up=part(stored["up"]), down=part(stored["down"]), mid=away, scale=1.0)
    tensor = replace(stored["half"], updates=(update,))
    assert tensor.files == {stored["half"].file, other}
    assert replace(tensor, updates=(), appended=(away,)).files == tensor.files
    assert tensor.size_bytes == 6 * 4 * 2
