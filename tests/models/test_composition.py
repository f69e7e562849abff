import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.errors import CheckpointError
from triptych.models.composition import (
    COMPOSITION_NAME,
    Composition,
    Source,
    WeightFile,
    fingerprint,
    read_composition,
    write_composition,
)
from triptych.models.stored_tensor import FileTensor, LowRankUpdate, StoredTensor


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"one": torch.randn(300, 1000, generator=generator)}, path)
    return path


@pytest.fixture
def composition(weights: Path) -> Composition:
    part = FileTensor(file=weights, key="one")
    tensor = StoredTensor(
        file=weights,
        key="one",
        shape=(300, 1000),
        dtype="F32",
        rows=(0, 300),
        updates=(LowRankUpdate(up=part, down=part, scale=0.5),),
        appended=(part,),
    )
    file = WeightFile(
        path=weights,
        label="base/weights.safetensors",
        size_bytes=weights.stat().st_size,
        fingerprint=fingerprint(weights),
        sha256="0" * 64,
    )
    source = Source(role="lora", name="base", sha256={file.label: file.sha256}, scale=0.5)
    return Composition(
        sources=(source,), files=(file,), networks={"unet": {"conv_in.weight": tensor}}
    )


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_composition(folder)
    return str(caught.value)


def test_what_is_written_is_read(composition: Composition, tmp_path: Path) -> None:
    write_composition(composition, tmp_path)
    assert read_composition(tmp_path) == composition


def test_a_network_s_files_are_those_of_every_part_of_its_weights(
    composition: Composition,
) -> None:
    assert composition.network_files("unet") == composition.files


def test_a_file_that_is_gone_is_named(
    composition: Composition, weights: Path, tmp_path: Path
) -> None:
    write_composition(composition, tmp_path)
    weights.rename(weights.with_suffix(".moved"))
    assert f"got no {weights}" in refusal(tmp_path)


@pytest.mark.parametrize("changed", [slice(12, 13), slice(-600_000, -570_000)])
def test_another_file_of_the_same_size_is_noticed(
    changed: slice, composition: Composition, weights: Path, tmp_path: Path
) -> None:
    write_composition(composition, tmp_path)
    content = bytearray(weights.read_bytes())
    content[changed] = bytes(byte ^ 1 for byte in content[changed])
    weights.write_bytes(content)
    message = refusal(tmp_path)
    assert f"got another {weights}" in message
    assert "Compose again" in message


def test_a_file_of_another_length_is_noticed(
    composition: Composition, weights: Path, tmp_path: Path
) -> None:
    write_composition(composition, tmp_path)
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert f"got another {weights}" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1}', "\udcff"])
def test_what_is_no_composition_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / COMPOSITION_NAME
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert "want what triptych compose wrote" in refusal(tmp_path)


def test_a_newer_schema_is_refused(composition: Composition, tmp_path: Path) -> None:
    write_composition(composition, tmp_path)
    path = tmp_path / COMPOSITION_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    assert "Upgrade triptych" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Source(role="checkpoint", name="base"), "checkpoint base"),
        (Source(role="lora", name="ink.safetensors", scale=0.8), "lora ink.safetensors at 0.8"),
        (
            Source(role="textual_inversion", name="cat.safetensors", token="<cat>"),  # noqa: S106  # a word, not a secret
            "textual inversion cat.safetensors as <cat>",
        ),
    ],
)
def test_sources_are_told_to_people(source: Source, text: str) -> None:
    assert source.text() == text
