"""Embeddings instead of prompts: the same run, no text encoder, and the model's sizes."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import TensorMismatchError, UsageError
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime
from triptych.sampling.pipeline import denoise, encode, prepare
from triptych.sampling.prompt_embeddings import (
    PromptEmbeddings,
    embeddings_from_encoded,
    encoded_from_embeddings,
)
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings

PROMPTS = Prompts(prompt=("a cat", "a dog"), negative_prompt=("fog", "rain"))


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return make_runtime("onnxruntime")


@pytest.fixture(scope="module")
def embeddings(onnx_bundle: Bundle, runtime: Runtime) -> PromptEmbeddings:
    encoded, _ = encode(onnx_bundle, runtime, PROMPTS)
    return embeddings_from_encoded(encoded)


def settings(prompts: Prompts | PromptEmbeddings) -> Settings:
    return Settings(
        prompts=prompts, height_px=64, width_px=40, num_inference_steps=2, num_images_per_prompt=2
    )


def test_embeddings_make_the_same_pictures_without_text_encoders(
    onnx_bundle: Bundle,
    runtime: Runtime,
    embeddings: PromptEmbeddings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *_, expected = denoise(onnx_bundle, runtime, prepare(onnx_bundle, runtime, settings(PROMPTS)))

    opened: list[str] = []
    open_one = Bundle.artifact

    def artifact(bundle: Bundle, component: str) -> Artifact:
        opened.append(component)
        return open_one(bundle, component)  # type: ignore[arg-type]

    monkeypatch.setattr(Bundle, "artifact", artifact)
    prepared = prepare(onnx_bundle, runtime, settings(embeddings))
    *_, last = denoise(onnx_bundle, runtime, prepared)

    np.testing.assert_array_equal(last.latents, expected.latents)
    assert opened == ["unet"]
    assert not prepared.executions
    assert last.latents.shape[0] == 4


def test_no_negative_side_is_zeros_where_the_model_says_so(
    onnx_bundle: Bundle, embeddings: PromptEmbeddings
) -> None:
    alone = replace(embeddings, negative_prompt_embeds=None, negative_pooled_prompt_embeds=None)
    forced = replace(onnx_bundle.config, force_zeros_for_empty_prompt=True)
    other = replace(onnx_bundle.config, force_zeros_for_empty_prompt=False)
    encoded = encoded_from_embeddings(alone, config=forced, guided=True)
    assert not encoded.negative_encoder_hidden_states.any()
    assert encoded.negative_text_embeds.shape == encoded.text_embeds.shape
    assert not encoded.negative_text_embeds.any()

    encoded_from_embeddings(alone, config=other, guided=False)
    with pytest.raises(UsageError, match="got no negative side"):
        encoded_from_embeddings(alone, config=other, guided=True)


def test_half_a_negative_side(onnx_bundle: Bundle, embeddings: PromptEmbeddings) -> None:
    half = replace(embeddings, negative_pooled_prompt_embeds=None)
    with pytest.raises(UsageError, match="want negative_prompt_embeds and negative_pooled"):
        encoded_from_embeddings(half, config=onnx_bundle.config, guided=True)


def test_sizes_of_another_model(onnx_bundle: Bundle, embeddings: PromptEmbeddings) -> None:
    states, pooled = embeddings.prompt_embeds, embeddings.pooled_prompt_embeds
    wrong = {
        "prompt_embeds": [states[:, :, 1:], states[:, :76], states[:1]],
        "pooled_prompt_embeds": [pooled[:, 1:], pooled[:1]],
        "negative_prompt_embeds": [states[:1], states[:, :76]],
        "negative_pooled_prompt_embeds": [pooled[:1], pooled[:, 1:]],
    }
    for name, tensors in wrong.items():
        for tensor in tensors:
            changed = replace(embeddings, **{name: tensor})
            with pytest.raises(TensorMismatchError, match=r"prompt embeddings .*prompt_embeds"):
                encoded_from_embeddings(changed, config=onnx_bundle.config, guided=True)
