"""Encoded prompts in a file: written by encode, read by sample."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triptych.errors import BrokenInputError, UsageError
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.prompt_embeddings import PromptEmbeddings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import Array
from triptych.workflows.encode import EncodeRequest, encode_to_file
from triptych.workflows.prompt_embeds_file import read_prompt_embeds
from triptych.workflows.sample import sample
from triptych.workflows.sample_request import SampleRequest

NAMES = (
    *("prompt_embeds", "pooled_prompt_embeds"),
    *("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
)


def tensors(*, dtype: type[np.floating] = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal((2, 8) if "pooled" in name else (2, 77, 6)).astype(dtype)
        for name in NAMES
    }


def final_latents(bundle: Path, output: Path, prompts: Prompts | PromptEmbeddings) -> Array:
    request = SampleRequest(
        bundle=bundle,
        output=output,
        settings=Settings(prompts=prompts, num_inference_steps=2, height_px=64, width_px=64),
        runtime_settings=RuntimeSettings(),
    )
    sample(request)
    final: Array = load_file(output / "latents.safetensors")["final"]
    return final


def test_a_file_draws_what_its_prompts_draw(onnx_folder: Path, tmp_path: Path) -> None:
    prompts = Prompts(prompt=("a (cat)1.3",), negative_prompt=("fog",), prompt_weighting=True)
    request = EncodeRequest(
        bundle=onnx_folder,
        output=tmp_path / "new" / "cat.safetensors",
        prompts=prompts,
        runtime_settings=RuntimeSettings(),
    )
    written = encode_to_file(request)

    assert tuple(written.shapes) == NAMES
    assert [path.name for path in written.output.parent.iterdir()] == ["cat.safetensors"]
    embeddings = read_prompt_embeds(written.output)
    np.testing.assert_array_equal(
        final_latents(onnx_folder, tmp_path / "file", embeddings),
        final_latents(onnx_folder, tmp_path / "text", prompts),
    )
    run = json.loads((tmp_path / "file" / "run.json").read_text(encoding="utf-8"))
    assert set(run["prompts"]) == {f"{name}_sha256" for name in NAMES}
    assert run["runtime"]["device"] == "CPUExecutionProvider"


def test_a_file_that_is_there_is_kept(onnx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "cat.safetensors"
    output.write_bytes(b"mine")
    for path, overwrite in ((output, False), (tmp_path, True)):
        request = EncodeRequest(
            bundle=onnx_folder,
            output=path,
            prompts=Prompts(prompt=("a " * 80,)),
            runtime_settings=RuntimeSettings(),
            overwrite=overwrite,
        )
        with pytest.raises(UsageError, match="want a new one"):
            encode_to_file(request)
    assert output.read_bytes() == b"mine"


def test_prompts_that_were_cut_are_told(onnx_folder: Path, tmp_path: Path) -> None:
    request = EncodeRequest(
        bundle=onnx_folder,
        output=tmp_path / "cat.safetensors",
        prompts=Prompts(prompt=("a " * 80,)),
        runtime_settings=RuntimeSettings(),
    )
    assert len(encode_to_file(request).warnings) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_floats_are_read_as_float32(tmp_path: Path, dtype: type[np.floating]) -> None:
    save_file(tensors(dtype=dtype), tmp_path / "x.safetensors")
    read = read_prompt_embeds(tmp_path / "x.safetensors").tensors()
    for name, tensor in tensors(dtype=dtype).items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], tensor.astype(np.float32))


def test_the_negative_side_may_be_absent(tmp_path: Path) -> None:
    save_file({name: tensors()[name] for name in NAMES[:2]}, tmp_path / "x.safetensors")
    assert tuple(read_prompt_embeds(tmp_path / "x.safetensors").tensors()) == NAMES[:2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pooled_prompt_embeds": None}, "want prompt_embeds and pooled_prompt_embeds"),
        ({"negative_prompt_embed": np.zeros(1)}, "got tensors negative_pooled_prompt_embeds, neg"),
        ({"prompt_embeds": np.zeros((77, 6))}, r"'prompt_embeds': got float64 \[77, 6\]"),
        ({"prompt_embeds": np.zeros((2, 77, 6), int)}, "got int64"),
        (
            {"negative_pooled_prompt_embeds": np.full((2, 8), np.nan)},
            "want finite float32 or float16 of 2",
        ),
    ],
)
def test_files_of_something_else(
    tmp_path: Path, change: dict[str, Array | None], told: str
) -> None:
    changed = {n: t for n, t in {**tensors(), **change}.items() if t is not None}
    save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(BrokenInputError, match=told):
        read_prompt_embeds(tmp_path / "x.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for name in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(BrokenInputError, match="want a safetensors file"):
            read_prompt_embeds(tmp_path / name)


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    header = (
        b'{"prompt_embeds":{"dtype":"BF16","shape":[1,1,1],"data_offsets":[0,2]},'
        b'"pooled_prompt_embeds":{"dtype":"BF16","shape":[1,1],"data_offsets":[2,4]}}'
    )
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BrokenInputError, match="float32 or float16"):
        read_prompt_embeds(tmp_path / "x.safetensors")
