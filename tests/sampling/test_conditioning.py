"""Sizes, and the order in which the U-Net gets what it is told."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.bundle.bundle import Bundle
from triptych.models.sdxl import SdxlConfig
from triptych.sampling.conditioning import Conditioning, make_conditioning
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.prompt_encoding import EncodedPrompts

PICTURE_SIZE = (128, 96)


@pytest.fixture
def config(checkpoint_bundle: Bundle) -> SdxlConfig:
    return checkpoint_bundle.config


def encoded_rows(count: int) -> EncodedPrompts:
    """Row r of the conditional side holds r + 1, of the unconditional side -(r + 1)."""
    rows = np.arange(1, count + 1, dtype=np.float32)
    states = np.broadcast_to(rows[:, None, None], (count, 7, 8)).copy()
    embeds = np.broadcast_to(rows[:, None], (count, 4)).copy()
    return EncodedPrompts(
        encoder_hidden_states=states,
        text_embeds=embeds,
        negative_encoder_hidden_states=-states,
        negative_text_embeds=-embeds,
        input_ids={},
        num_truncated={},
    )


def condition(
    config: SdxlConfig,
    *,
    count: int = 1,
    sizes: MicroConditioning | None = None,
    num_images_per_prompt: int = 1,
    guided: bool = True,
    from_image: bool = False,
) -> Conditioning:
    return make_conditioning(
        encoded_rows(count),
        sizes or MicroConditioning(),
        config=config,
        picture_size=PICTURE_SIZE,
        num_images_per_prompt=num_images_per_prompt,
        guided=guided,
        from_image=from_image,
    )


# --- the batch -----------------------------------------------------------------------------------


def test_guidance_puts_the_unconditional_half_first(config: SdxlConfig) -> None:
    told = condition(config, count=2)
    assert told.text_embeds[:, 0].tolist() == [-1, -2, 1, 2]
    assert told.encoder_hidden_states[:, 0, 0].tolist() == [-1, -2, 1, 2]


def test_without_guidance_only_the_conditional_half_is_there(config: SdxlConfig) -> None:
    told = condition(config, count=2, guided=False)
    assert told.text_embeds[:, 0].tolist() == [1, 2]
    assert len(told.encoder_hidden_states) == len(told.time_ids) == 2


def test_pictures_of_one_prompt_lie_next_to_each_other(config: SdxlConfig) -> None:
    told = condition(config, count=2, num_images_per_prompt=3)
    rows = [-1, -1, -1, -2, -2, -2, 1, 1, 1, 2, 2, 2]
    assert told.text_embeds[:, 0].tolist() == rows
    assert told.encoder_hidden_states[:, 0, 0].tolist() == rows
    assert told.time_ids.shape == (12, 6)


# --- sizes ---------------------------------------------------------------------------------------


def test_time_ids_are_height_before_width(config: SdxlConfig) -> None:
    sizes = MicroConditioning(original_size=(1, 2), crop=(3, 4), target_size=(5, 6))
    told = condition(config, sizes=sizes, guided=False)
    assert told.time_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert told.time_ids.dtype == np.float32


def test_sizes_left_open_are_the_pictures(config: SdxlConfig) -> None:
    told = condition(config)
    assert told.time_ids.tolist() == [[128, 96, 0, 0, 128, 96]] * 2


def test_negative_sizes_are_for_the_unconditional_half(config: SdxlConfig) -> None:
    sizes = MicroConditioning(
        original_size=(1, 2),
        crop=(3, 4),
        target_size=(5, 6),
        negative_original_size=(10, 20),
        negative_crop=(30, 40),
        negative_target_size=(50, 60),
    )
    told = condition(config, count=2, sizes=sizes, num_images_per_prompt=2)
    expected = [[10, 20, 30, 40, 50, 60]] * 4 + [[1, 2, 3, 4, 5, 6]] * 4
    assert told.time_ids.tolist() == expected


@pytest.mark.parametrize(
    "sizes",
    [
        MicroConditioning(crop=(3, 4), negative_original_size=(10, 20)),
        MicroConditioning(crop=(3, 4), negative_target_size=(10, 20)),
        MicroConditioning(crop=(3, 4), negative_crop=(30, 40)),
    ],
)
def test_one_negative_size_alone_changes_nothing(
    config: SdxlConfig, sizes: MicroConditioning
) -> None:
    told = condition(config, sizes=sizes)
    assert told.time_ids.tolist() == [[128, 96, 3, 4, 128, 96]] * 2


def test_a_refiner_takes_scores_instead_of_the_target_size(config: SdxlConfig) -> None:
    refiner = replace(config, num_time_ids=5, kind="refiner")
    sizes = MicroConditioning(
        crop=(3, 4),
        negative_crop=(5, 6),
        negative_original_size=(64, 32),
        aesthetic_score=7.5,
        negative_aesthetic_score=1.5,
    )
    told = condition(refiner, sizes=sizes)
    assert told.time_ids.tolist() == [[64, 32, 5, 6, 1.5], [128, 96, 3, 4, 7.5]]


def test_from_a_picture_each_negative_size_counts_for_itself(config: SdxlConfig) -> None:
    sizes = MicroConditioning(crop=(3, 4), negative_crop=(5, 6), negative_target_size=(64, 32))
    told = condition(config, sizes=sizes, from_image=True)
    assert told.time_ids.tolist() == [[128, 96, 3, 4, 64, 32], [128, 96, 3, 4, 128, 96]]
