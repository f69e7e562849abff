import doctest
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline

from triptych.errors import MissingDependencyError, UsageError
from triptych.models.sdxl import read_sdxl_config
from triptych.testing import tiny, tiny_checkpoint
from triptych.testing._tokenizers import (
    END_TOKEN,
    NUM_MERGES,
    PROMPT_WORDS,
    START_TOKEN,
    byte_symbols,
    learn_merges,
)

PROMPT = "a photo of a cat"
OTHER_PROMPT = "a red cube beside the river"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TIME_IDS = (128.0, 128.0, 0.0, 0.0, 128.0, 128.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def conditioning(pipeline: StableDiffusionXLPipeline) -> Mapping[str, torch.Tensor]:
    """Both prompts' embeddings: rows 0 and 1 of each tensor."""
    with torch.no_grad():
        hidden_states, _, text_embeds, _ = pipeline.encode_prompt(
            [PROMPT, OTHER_PROMPT],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    return {"encoder_hidden_states": hidden_states, "text_embeds": text_embeds}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def digests(folder: Path) -> Mapping[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What is written


def test_one_seed_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)  # what torch would draw next must not matter
    assert digests(tiny_checkpoint(tmp_path / "again")) == digests(checkpoint)


def test_another_seed_changes_every_weight_file_and_nothing_else(
    checkpoint: Path, tmp_path: Path
) -> None:
    expected = digests(checkpoint)
    actual = digests(tiny_checkpoint(tmp_path / "other", seed=1))
    differing = {name for name in expected if actual[name] != expected[name]}
    assert actual.keys() == expected.keys()
    assert differing == {name for name in expected if name.endswith(".safetensors")}
    assert len(differing) == 4


def test_a_preview_decoder_changes_nothing_else(
    checkpoint: Path, preview_checkpoint: Path, tmp_path: Path
) -> None:
    expected, actual = digests(checkpoint), digests(preview_checkpoint)
    added = {f"preview_decoder/{name}" for name in ("config.json", WEIGHTS)}
    assert actual.keys() - expected.keys() == added
    assert {name: actual[name] for name in expected} == expected
    assert digests(tiny_checkpoint(tmp_path / "again", preview_decoder=True)) == actual
    other = digests(tiny_checkpoint(tmp_path / "other", preview_decoder=True, seed=1))
    assert {name for name in added if other[name] != actual[name]} == {f"preview_decoder/{WEIGHTS}"}


def test_torch_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny_checkpoint(tmp_path / "tiny", preview_decoder=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_files_and_their_size(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir()} == {
        "model_index.json",
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "vae",
    }
    size_bytes = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert size_bytes <= 8_000_000


def test_returns_the_folder_it_was_given_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tiny"
    assert tiny_checkpoint(folder) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny_checkpoint(Path("tiny")) == Path("tiny")
    assert (tmp_path / "tiny" / "model_index.json").is_file()


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    assert (tiny_checkpoint(tmp_path) / "model_index.json").is_file()


def test_folder_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        tiny_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("keep", encoding="utf-8")
    with pytest.raises(UsageError, match="got a file"):
        tiny_checkpoint(path)


def test_failure_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_some_and_fail(_: object, folder: Path, **__: object) -> None:
        folder.mkdir()
        (folder / "model_index.json").touch()
        raise OSError("disk full")

    monkeypatch.setattr(StableDiffusionXLPipeline, "save_pretrained", write_some_and_fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_checkpoint(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["torch", "transformers", "diffusers"])
def test_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as caught:
        tiny_checkpoint(tmp_path / "tiny")
    assert (caught.value.package, caught.value.extra) == (package, "export")
    assert list(tmp_path.iterdir()) == []


def test_docstring_example_runs() -> None:
    outcome = doctest.testmod(tiny)
    assert (outcome.attempted > 0, outcome.failed) == (True, 0)


# That it is SDXL's topology


def test_the_preview_decoder_is_taesd_but_for_its_sizes(preview_checkpoint: Path) -> None:
    network = AutoencoderTiny.from_pretrained(preview_checkpoint / "preview_decoder")
    published = AutoencoderTiny().config
    sizes = {"block_out_channels", *tiny.PREVIEW_DECODER} - {"latent_channels"}
    settings = {name for name in published if not name.startswith("_")}
    differing = {name for name in settings if published[name] != network.config[name]}
    assert differing <= sizes
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert float(parameter.detach().abs().max()) > 1e-2, name
    latents = noise(2, 4, 16, 16)
    with torch.no_grad():
        image = network.decode(latents).sample
        other = network.decode(latents + 0.5 * noise(2, 4, 16, 16, seed=1)).sample
    assert 0.1 < float(image.std()) < 1
    assert float((image.abs() > 1).float().mean()) < 0.25
    assert relative_l2(other, image) > 0.1


def test_our_reader_takes_it_for_sdxl_base(checkpoint: Path) -> None:
    config = read_sdxl_config(checkpoint)
    encoders = config.text_encoders
    assert (config.kind, config.num_time_ids, config.vae_scale_factor) == ("base", 6, 8)
    assert (config.scaling_factor, config.force_upcast) == (0.13025, True)
    assert config.force_zeros_for_empty_prompt
    assert config.cross_attention_dim == sum(sizes.hidden_size for sizes in encoders.values())


def test_text_encoders(pipeline: StableDiffusionXLPipeline) -> None:
    first, second = pipeline.text_encoder, pipeline.text_encoder_2
    assert type(first).__name__ == "CLIPTextModel"
    assert type(second).__name__ == "CLIPTextModelWithProjection"
    assert (first.config.hidden_act, second.config.hidden_act) == ("quick_gelu", "gelu")
    assert first.config.hidden_size != second.config.hidden_size
    for encoder, tokenizer in ((first, pipeline.tokenizer), (second, pipeline.tokenizer_2)):
        config = encoder.config
        assert config.num_hidden_layers >= 3
        assert config.max_position_embeddings == 77
        assert config.vocab_size == len(tokenizer)
        # As SDXL publishes them; end id 2 selects pooling by argmax.
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 2, 1)


def test_unet(pipeline: StableDiffusionXLPipeline) -> None:
    unet = pipeline.unet
    attentions = [block.attentions for block in unet.down_blocks if hasattr(block, "attentions")]
    depths = [[len(attention.transformer_blocks) for attention in level] for level in attentions]
    assert depths == [[1, 1], [2, 2]]
    assert [len(block.transformer_blocks) for block in unet.mid_block.attentions] == [2]
    assert isinstance(attentions[0][0].proj_in, torch.nn.Linear)
    assert [level[0].transformer_blocks[0].attn1.heads for level in attentions] == [2, 4]
    assert unet.config.addition_embed_type == "text_time"
    assert not hasattr(unet.down_blocks[0], "attentions")


def test_vae_and_picture_size(pipeline: StableDiffusionXLPipeline) -> None:
    assert pipeline.vae_scale_factor == 8
    assert pipeline.vae.config.force_upcast is True
    assert pipeline.vae.config.latent_channels == 4
    assert pipeline.default_sample_size * pipeline.vae_scale_factor == 128
    assert pipeline.watermark is None


def test_everything_is_fp32(pipeline: StableDiffusionXLPipeline) -> None:
    networks = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae)
    dtypes = {parameter.dtype for network in networks for parameter in network.parameters()}
    assert dtypes == {torch.float32}


def test_scheduler_is_the_one_of_sdxl_base(pipeline: StableDiffusionXLPipeline) -> None:
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    published = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
    }
    assert published.items() <= dict(pipeline.scheduler.config).items()


# That it behaves


# EulerDiscreteScheduler.set_timesteps calls np.array on a tensor; torch's __array__ does not know
# NumPy 2's copy keyword yet. The copy is made all the same.
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_two_steps_give_a_picture(pipeline: StableDiffusionXLPipeline) -> None:
    pixels = pipeline(
        PROMPT,
        height=64,
        width=64,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert pixels.shape == (1, 64, 64, 3)
    assert np.isfinite(pixels).all()
    assert pixels.std() > 0.05


@pytest.mark.parametrize(
    "changed", ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
)
def test_unet_feels_every_input(
    changed: str,
    pipeline: StableDiffusionXLPipeline,
    conditioning: Mapping[str, torch.Tensor],
) -> None:
    feed = {
        "sample": noise(1, 4, 16, 16),
        "timestep": torch.tensor(500),
        "time_ids": torch.tensor([TIME_IDS]),
        **{name: tensor[:1] for name, tensor in conditioning.items()},
    }
    changes = {
        "sample": noise(1, 4, 16, 16, seed=1),
        "timestep": torch.tensor(480),
        "time_ids": torch.tensor([(64.0, *TIME_IDS[1:])]),
        **{name: tensor[1:] for name, tensor in conditioning.items()},
    }
    expected = noise_pred(pipeline, feed)
    actual = noise_pred(pipeline, {**feed, changed: changes[changed]})
    assert 0.3 < float(expected.std()) < 3
    assert relative_l2(actual, expected) > 1e-2


def noise_pred(
    pipeline: StableDiffusionXLPipeline, feed: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    with torch.no_grad():
        output = pipeline.unet(
            feed["sample"],
            feed["timestep"],
            encoder_hidden_states=feed["encoder_hidden_states"],
            added_cond_kwargs={name: feed[name] for name in ("text_embeds", "time_ids")},
        ).sample
    assert isinstance(output, torch.Tensor)
    return output


def test_vae_decodes_to_pictures_and_encodes_back(pipeline: StableDiffusionXLPipeline) -> None:
    vae = pipeline.vae
    with torch.no_grad():
        image = vae.decode(noise(1, 4, 16, 16) / vae.config.scaling_factor).sample
        moments = vae.encode(image).latent_dist.parameters
    assert image.shape == (1, 3, 128, 128)
    assert moments.shape == (1, 8, 16, 16)
    assert moments.isfinite().all()
    assert float(image.std()) > 0.1
    assert float((image.abs() > 1).float().mean()) < 0.1


def test_penultimate_layer_is_not_the_last(pipeline: StableDiffusionXLPipeline) -> None:
    input_ids = torch.tensor([pipeline.tokenizer(PROMPT, padding="max_length").input_ids])
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        with torch.no_grad():
            hidden_states = encoder(input_ids, output_hidden_states=True).hidden_states
        assert relative_l2(hidden_states[-2], hidden_states[-1]) > 0.1


def test_no_norm_is_neutral_and_no_bias_is_zero(pipeline: StableDiffusionXLPipeline) -> None:
    """Else an exporter that drops one would go unnoticed."""
    networks = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae)
    for network in networks:
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                neutral = 1.0 if name.endswith("weight") else 0.0
                assert float((parameter.detach() - neutral).abs().max()) > 1e-2, name


# Tokenizers


def test_prompt_is_merged_and_framed(pipeline: StableDiffusionXLPipeline) -> None:
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        input_ids = tokenizer(PROMPT).input_ids
        start, end = tokenizer.convert_tokens_to_ids([START_TOKEN, END_TOKEN])
        assert (start, end) == (len(tokenizer) - 2, len(tokenizer) - 1)
        assert (input_ids[0], input_ids[-1]) == (start, end)
        assert len(input_ids) - 2 < len(PROMPT.replace(" ", ""))
        assert tokenizer.decode(input_ids, skip_special_tokens=True) == PROMPT


def test_padding_differs_between_the_tokenizers(pipeline: StableDiffusionXLPipeline) -> None:
    first, second = (
        tokenizer(PROMPT, padding="max_length").input_ids
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
    )
    end = len(pipeline.tokenizer) - 1
    num_tokens = first.index(end) + 1
    assert first[:num_tokens] == second[:num_tokens]
    assert (len(first), len(second)) == (77, 77)
    assert set(first[num_tokens:]) == {end}
    assert set(second[num_tokens:]) == {0}


def test_any_text_has_a_spelling(pipeline: StableDiffusionXLPipeline) -> None:
    """Every byte is in the vocabulary, so that nothing falls to the unknown token (the end)."""
    text = "naïve 猫 42% émigré ~"
    input_ids = pipeline.tokenizer(text).input_ids
    assert len(pipeline.tokenizer) - 1 not in input_ids[1:-1]


def test_vocabulary_is_in_the_order_of_clip(pipeline: StableDiffusionXLPipeline) -> None:
    tokens = pipeline.tokenizer.convert_ids_to_tokens(range(len(pipeline.tokenizer)))
    assert len(set(tokens)) == 256 + 256 + NUM_MERGES + 2
    assert tokens[:2] == ["!", '"']
    assert tokens[256:258] == ["!</w>", '"</w>']
    assert len(set(byte_symbols())) == 256


def test_merges_are_learned_by_frequency_then_spelling() -> None:
    # "y z</w>" four times; then "a b</w>" and "c a" twice each: spelling decides.
    merges = learn_merges("cab cab yz yz yz yz", num_merges=3)
    assert merges == (("y", "z</w>"), ("a", "b</w>"), ("c", "ab</w>"))


def test_merges_do_not_overlap() -> None:
    assert learn_merges("aaaa", num_merges=9) == (("a", "a"), ("a", "a</w>"), ("aa", "aa</w>"))


def test_there_is_text_for_every_merge() -> None:
    assert len(learn_merges(PROMPT_WORDS, num_merges=NUM_MERGES)) == NUM_MERGES
