"""What the text encoders give, beside diffusers' encode_prompt, with and without clip_skip."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.runtimes import make_runtime
from triptych.sampling.pipeline import encode
from triptych.sampling.prompt_embeddings import embeddings_from_encoded
from triptych.sampling.prompt_encoding import Prompts

ENGINES = {"pytorch": "checkpoint", "onnxruntime": "onnx", "openvino": "openvino"}
PROMPT, PROMPT_2, NEGATIVE = "a cat", "an oil painting", "fog"


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_hidden_states_are_diffusers(
    engine: str, clip_skip: int, pipeline: StableDiffusionXLPipeline, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(f"{ENGINES[engine]}_bundle")
    prompts = Prompts(
        prompt=(PROMPT,), prompt_2=(PROMPT_2,), negative_prompt=(NEGATIVE,), clip_skip=clip_skip
    )
    encoded, _ = encode(bundle, make_runtime(engine), prompts)
    with torch.no_grad():
        states, negative_states, pooled, negative_pooled = pipeline.encode_prompt(
            PROMPT,
            prompt_2=PROMPT_2,
            negative_prompt=NEGATIVE,
            clip_skip=clip_skip or None,
            device="cpu",
        )
    kept = embeddings_from_encoded(encoded).tensors()
    expected = {
        "prompt_embeds": states,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": negative_states,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    assert kept.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(kept[name], tensor.numpy(), atol=2e-5, err_msg=name)


def test_skipped_weighted_prompts_are_weighted_states_of_that_layer(
    onnx_bundle: Bundle,
) -> None:
    runtime = make_runtime("onnxruntime")

    def states(text: str, clip_skip: int) -> np.ndarray:
        prompts = Prompts(prompt=(text,), prompt_weighting=True, clip_skip=clip_skip)
        return encode(onnx_bundle, runtime, prompts)[0].encoder_hidden_states

    whole, empty = states("cat", 1), states("", 1)
    weighted = states("(cat)1.5", 1)
    np.testing.assert_allclose(weighted[:, 1], empty[:, 1] + 1.5 * (whole - empty)[:, 1], atol=1e-5)
    assert not np.allclose(weighted, states("(cat)1.5", 0))


@pytest.mark.parametrize("clip_skip", [3, 100, -1])
def test_a_layer_that_is_not_there(onnx_bundle: Bundle, clip_skip: int) -> None:
    prompts = Prompts(prompt=(PROMPT,), clip_skip=clip_skip)
    with pytest.raises(UsageError, match=rf"got {clip_skip} for text_encoder, want 0 to 2"):
        encode(onnx_bundle, make_runtime("onnxruntime"), prompts)


def test_the_names_in_the_file_are_the_pipelines(pipeline: StableDiffusionXLPipeline) -> None:
    parameters = inspect.signature(pipeline.__call__).parameters
    names = ("prompt_embeds", "pooled_prompt_embeds")
    assert {*names, *(f"negative_{name}" for name in names)} <= parameters.keys()
