import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.models.feeds import FIRST_SIGMA, TIMESTEPS, component_cases, unet_feed
from triptych.models.prompts import PROMPTS, prompt_ids
from triptych.models.sdxl import COMPONENTS, SdxlConfig, component_spec, read_sdxl_config
from triptych.tensors import check_tensors
from triptych.types import ComponentName


@pytest.fixture
def config(checkpoint: Path) -> SdxlConfig:
    return read_sdxl_config(checkpoint)


@pytest.mark.parametrize("component", [*COMPONENTS, "preview_decoder"])
def test_every_feed_fits_the_spec_at_two_batch_sizes(
    component: ComponentName, checkpoint: Path, config: SdxlConfig
) -> None:
    spec = component_spec(component, config)
    cases = list(component_cases(component, config, input_ids=prompt_ids(checkpoint, component)))
    axes = [check_tensors(case.feed, spec.inputs, component=component) for case in cases]
    assert len({bound["batch"] for bound in axes}) >= 2
    if not component.startswith("text"):
        sizes = {(bound["height"], bound["width"]) for bound in axes}
        assert any(height != width for height, width in sizes)
        assert any(height % 2 for height, _ in sizes)
    assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("component", [*COMPONENTS, "preview_decoder"])
def test_the_same_feeds_come_each_time(
    component: ComponentName, checkpoint: Path, config: SdxlConfig
) -> None:
    ids = prompt_ids(checkpoint, component)
    once, again = (list(component_cases(component, config, input_ids=ids)) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        for name, value in one.feed.items():
            assert np.array_equal(value, other.feed[name])


def test_the_unet_meets_both_ends_of_the_schedule_and_a_fraction(config: SdxlConfig) -> None:
    cases = component_cases("unet", config, input_ids=np.zeros((0, 0), np.int64))
    timesteps = [float(case.feed["timestep"]) for case in cases]
    assert timesteps == [*TIMESTEPS, TIMESTEPS[0]]
    assert any(timestep % 1 for timestep in timesteps)


def test_base_time_ids_are_original_size_crop_and_target_size(config: SdxlConfig) -> None:
    feed = unet_feed(config, batch=2, height=3, width=5, random=np.random.default_rng(0))
    assert feed["time_ids"].tolist() == [[24, 40, 0, 0, 24, 40]] * 2


def test_refiner_time_ids_end_in_an_aesthetic_score(config: SdxlConfig) -> None:
    refiner = replace(config, kind="refiner", num_time_ids=5)
    feed = unet_feed(refiner, batch=1, height=3, width=5, random=np.random.default_rng(0))
    assert feed["time_ids"].tolist() == [[24, 40, 0, 0, 6]]


def test_decoder_latents_have_the_size_of_real_ones(config: SdxlConfig) -> None:
    cases = list(component_cases("vae_decoder", config, input_ids=np.zeros((0, 0), np.int64)))
    spread = float(np.std(np.concatenate([case.feed["latents"].ravel() for case in cases])))
    assert spread == pytest.approx(1 / config.scaling_factor, rel=0.1)


def test_encoder_images_stay_between_minus_one_and_one(config: SdxlConfig) -> None:
    for case in component_cases("vae_encoder", config, input_ids=np.zeros((0, 0), np.int64)):
        assert case.feed["image"].min() == -1
        assert case.feed["image"].max() == 1


def test_preview_latents_are_those_of_the_first_step_and_the_last(config: SdxlConfig) -> None:
    cases = component_cases("preview_decoder", config, input_ids=np.zeros((0, 0), np.int64))
    spreads = [float(case.feed["latents"].std()) for case in cases]
    assert spreads == pytest.approx([1, 1, FIRST_SIGMA], rel=0.1)


def test_preview_latents_of_a_graph_of_fixed_shapes_have_its_size(config: SdxlConfig) -> None:
    axes = {"batch": 1, "height": 16, "width": 12}
    cases = component_cases(
        "preview_decoder", config, input_ids=np.zeros((0, 0), np.int64), fixed_axes=axes
    )
    shapes = {case.name: case.feed["latents"].shape for case in cases}
    assert list(shapes.values()) == [(1, 4, 16, 12), (2, 4, 16, 12), (1, 4, 16, 12)]


def test_prompts_reach_from_empty_to_too_long(checkpoint: Path) -> None:
    ids = prompt_ids(checkpoint, "text_encoder")
    end = ids.max()
    assert ids.shape == (len(PROMPTS), 77)
    assert ids[0, 1] == end
    assert ids[-1, -1] == end
    assert ids[-1, -2] != end


def test_each_encoder_gets_the_ids_of_its_own_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (prompt_ids(checkpoint, name) for name in ("text_encoder", "text_encoder_2"))
    assert not np.array_equal(first, second)  # they pad differently
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    path = copied / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 20}))
    assert prompt_ids(copied, "text_encoder").shape[1] == 20
    assert prompt_ids(copied, "text_encoder_2").shape[1] == 77


def test_components_that_read_no_text_have_no_prompts(checkpoint: Path) -> None:
    assert prompt_ids(checkpoint, "unet").size == 0
