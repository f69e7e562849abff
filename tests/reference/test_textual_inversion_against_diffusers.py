"""Prompts with textual inversions in a composed checkpoint, beside diffusers' pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from triptych.bundle.bundle import open_bundle
from triptych.models.checkpoint import Checkpoint
from triptych.models.tokenizer import load_tokenizer
from triptych.runtimes import make_runtime
from triptych.sampling.pipeline import encode
from triptych.sampling.prompt_embeddings import embeddings_from_encoded
from triptych.sampling.prompt_encoding import Prompts
from triptych.workflows.compose import ComposeRequest, NamedInversion, compose_checkpoint
from triptych.workflows.export import ExportRequest, export_bundles

pytestmark = pytest.mark.slow

TEXTS = [
    "a photo of <cat-toy> on a chair",
    "<cat-toy>",
    "Ink, a drawing of<cat-toy>by ink",
    "a cat, inky, <CAT-TOY>",
    "ink " * 50,
]
GENERATOR = torch.Generator().manual_seed(0)
CAT = {
    "clip_l": torch.randn(3, 32, generator=GENERATOR),
    "clip_g": torch.randn(3, 48, generator=GENERATOR),
}
INK = torch.randn(32, generator=GENERATOR)


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """With a token of three vectors in both text encoders, and one of one vector in the first."""
    folder = tmp_path_factory.mktemp("inversions")
    save_file(CAT, folder / "cat.safetensors")
    save_file({"ink": INK}, folder / "learned_embeds.safetensors")
    request = ComposeRequest(
        checkpoint=checkpoint,
        textual_inversions=(
            NamedInversion(path=folder / "cat.safetensors", token="<cat-toy>"),  # noqa: S106
            NamedInversion(path=folder / "learned_embeds.safetensors"),
        ),
    )
    return compose_checkpoint(request, folder / "made")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    first = {"text_encoder": pipeline.text_encoder, "tokenizer": pipeline.tokenizer}
    second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
    pipeline.load_textual_inversion(CAT["clip_l"], token="<cat-toy>", **first)  # noqa: S106
    pipeline.load_textual_inversion(CAT["clip_g"], token="<cat-toy>", **second)  # noqa: S106
    pipeline.load_textual_inversion({"ink": INK}, **first)
    return pipeline


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_those_of_diffusers(
    text: str, made: Checkpoint, expected: StableDiffusionXLPipeline
) -> None:
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(expected, name)
        prompt = expected.maybe_convert_prompt(text, tokenizer)
        padded = {"padding": "max_length", "max_length": 77, "truncation": True}
        wanted = tokenizer(prompt, **padded).input_ids
        assert load_tokenizer(made.folder / name).encode([text]).input_ids[0].tolist() == wanted
        ours = CLIPTokenizer.from_pretrained(made.folder / name)
        assert (
            ours(prompt, padding="max_length", max_length=77, truncation=True).input_ids == wanted
        )


@pytest.mark.parametrize("text", TEXTS[:3])
@pytest.mark.parametrize("engine", ["pytorch", "onnxruntime"])
def test_hidden_states_are_those_of_diffusers(
    engine: str,
    text: str,
    made: Checkpoint,
    expected: StableDiffusionXLPipeline,
    exported: Path,
) -> None:
    bundle = open_bundle(made.folder if engine == "pytorch" else exported)
    prompts = Prompts(prompt=(text,), negative_prompt=("ink",))
    encoded, _ = encode(bundle, make_runtime(engine), prompts)
    kept = embeddings_from_encoded(encoded).tensors()
    with torch.no_grad():
        states, negative_states, pooled, negative_pooled = expected.encode_prompt(
            text, negative_prompt="ink", device="cpu"
        )
    wanted = {
        "prompt_embeds": states,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": negative_states,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    for name, tensor in wanted.items():
        np.testing.assert_allclose(kept[name], tensor.numpy(), atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def exported(made: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = ExportRequest(
        checkpoint=made.folder,
        output=tmp_path_factory.mktemp("exported"),
        formats=["onnx"],
        components=["text_encoder", "text_encoder_2"],
        num_jobs=1,
    )
    return export_bundles(request)["onnx"]
