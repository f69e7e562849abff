"""Pictures and masks for inpainting beside diffusers' own way with them: equal bit for bit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from triptych.types import Array
from triptych.workflows.inpaint_files import InpaintFiles, read_inpaint_files
from triptych.workflows.mask_crop import crop_region

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

PICTURES = VaeImageProcessor(vae_scale_factor=8)
MASKS = VaeImageProcessor(
    vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)
"""As StableDiffusionXLInpaintPipeline makes them."""

OWN_SIZES_PX = ((64, 64), (75, 110), (200, 50), (33, 190), (301, 257))
SIZES_PX = ((64, 64), (64, 128), (136, 72))
PADDINGS_PX = (0, 8, 32, 200)


def photo(size_px: tuple[int, int]) -> Image.Image:
    """Smooth ground with noise on it, so that every resampling shows."""
    height_px, width_px = size_px
    random = np.random.default_rng(height_px * 1000 + width_px)
    ground = np.linspace(0, 200, height_px * width_px * 3).reshape(height_px, width_px, 3)
    return Image.fromarray((ground + random.integers(0, 56, ground.shape)).astype(np.uint8))


def masks(size_px: tuple[int, int]) -> Mapping[str, Image.Image]:
    """Masks at every border and in the middle, hard, soft, grey and coloured."""
    height_px, width_px = size_px
    third_x, third_y = width_px // 3, height_px // 3
    boxes = {
        "left and top": (0, 0, third_x, third_y),
        "right and bottom": (2 * third_x, 2 * third_y, width_px, height_px),
        "whole width": (0, third_y, width_px, third_y + 6),
        "whole height": (third_x, 0, third_x + 6, height_px),
        "middle": (third_x, third_y, 2 * third_x, 2 * third_y),
        "all": (0, 0, width_px, height_px),
    }
    made = {}
    for name, box in boxes.items():
        made[name] = Image.new("L", (width_px, height_px))
        made[name].paste(255, box)
    ellipse = Image.new("L", (width_px, height_px))
    ImageDraw.Draw(ellipse).ellipse((2, third_y, width_px - third_x, height_px - 4), fill=255)
    made["ellipse"] = ellipse
    made["soft ellipse"] = ellipse.filter(ImageFilter.GaussianBlur(4))
    random = np.random.default_rng(width_px)
    greys = np.where(np.asarray(ellipse) > 0, random.integers(0, 256, (height_px, width_px)), 0)
    made["greys"] = Image.fromarray(greys.astype(np.uint8))
    coloured = random.integers(0, 256, (height_px, width_px, 3), np.uint8)
    made["colours"] = Image.composite(
        Image.fromarray(coloured), Image.new("RGB", ellipse.size), ellipse
    )
    return made


def ours(
    picture: Image.Image,
    mask: Image.Image,
    folder: Path,
    *,
    size_px: tuple[int, int] | None,
    padding: int | None,
) -> InpaintFiles:
    picture.save(folder / "picture.png")
    mask.save(folder / "mask.png")
    return read_inpaint_files(
        folder / "picture.png",
        folder / "mask.png",
        size_px=size_px,
        scale=8,
        padding_mask_crop=padding,
    )


def check_equal(found: Array, expected: torch.Tensor) -> None:
    np.testing.assert_array_equal(found, expected.numpy(), strict=True)


@pytest.mark.parametrize("size_px", [None, *SIZES_PX])
@pytest.mark.parametrize("own_size_px", OWN_SIZES_PX)
def test_whole_pictures(
    own_size_px: tuple[int, int], size_px: tuple[int, int] | None, tmp_path: Path
) -> None:
    height_px, width_px = size_px or (None, None)
    picture = photo(own_size_px)
    for mask in masks(own_size_px).values():
        files = ours(picture, mask, tmp_path, size_px=size_px, padding=None)
        check_equal(files.image, PICTURES.preprocess(picture, height_px, width_px))
        check_equal(files.mask, MASKS.preprocess(mask, height_px, width_px))


@pytest.mark.parametrize("padding", PADDINGS_PX)
@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize("own_size_px", OWN_SIZES_PX)
def test_parts_and_their_way_back(
    own_size_px: tuple[int, int], size_px: tuple[int, int], padding: int, tmp_path: Path
) -> None:
    height_px, width_px = size_px
    picture, made = photo(own_size_px), photo(size_px).rotate(180)
    for mask in masks(own_size_px).values():
        box = MASKS.get_crop_region(mask, width_px, height_px, pad=padding)
        options = {"resize_mode": "fill", "crops_coords": box}
        files = ours(picture, mask, tmp_path, size_px=size_px, padding=padding)
        assert files.paste_back is not None
        assert files.paste_back.box == box
        check_equal(files.image, PICTURES.preprocess(picture, height_px, width_px, **options))
        check_equal(files.mask, MASKS.preprocess(mask, height_px, width_px, **options))
        expected = np.asarray(PICTURES.apply_overlay(mask, picture, made, box))
        found = files.pasted_back(np.asarray(made)[np.newaxis])
        np.testing.assert_array_equal(found, expected[np.newaxis], strict=True)


@st.composite
def crops(draw: st.DrawFn) -> tuple[Array, tuple[int, int], int]:
    height_px, width_px = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    levels = np.zeros((height_px, width_px), np.uint8)
    top, left = draw(st.integers(0, height_px - 1)), draw(st.integers(0, width_px - 1))
    bottom, right = draw(st.integers(top + 1, height_px)), draw(st.integers(left + 1, width_px))
    levels[top:bottom, left:right] = draw(st.integers(1, 255))
    size_px = draw(st.integers(1, 256)), draw(st.integers(1, 256))
    return levels, size_px, draw(st.integers(0, 300))


@settings(max_examples=500, deadline=None)
@given(crops())
def test_regions(crop: tuple[Array, tuple[int, int], int]) -> None:
    levels, (height_px, width_px), padding_px = crop
    expected = MASKS.get_crop_region(Image.fromarray(levels), width_px, height_px, pad=padding_px)
    found = crop_region(levels, size_px=(height_px, width_px), padding_px=padding_px)
    assert found == expected


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
@pytest.mark.parametrize("padding", [None, 8])
def test_masks_of_other_modes_as_diffusers_loads_them(
    mode: str, padding: int | None, tmp_path: Path
) -> None:
    """diffusers' load_image makes RGB of a file first, so 1 and P are resized as greys."""
    picture = photo((75, 110))
    painted = masks((75, 110))["ellipse"].convert(mode)
    files = ours(picture, painted, tmp_path, size_px=(64, 128), padding=padding)
    mask = load_image(str(tmp_path / "mask.png"))
    box = None if padding is None else MASKS.get_crop_region(mask, 128, 64, pad=padding)
    resize_mode = "default" if box is None else "fill"
    check_equal(files.mask, MASKS.preprocess(mask, 64, 128, resize_mode, box))


class Seen(StableDiffusionXLInpaintPipeline):  # type: ignore[misc]  # diffusers has no types
    """diffusers' pipeline, and what it makes of its files."""

    def prepare_mask_latents(
        self, mask: torch.Tensor, masked_image: torch.Tensor, *arguments: object
    ) -> object:
        self.mask, self.masked_image = mask, masked_image
        return super().prepare_mask_latents(mask, masked_image, *arguments)


def test_in_the_pipeline(
    pipeline: StableDiffusionXLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline calls its processors as this file does, and pastes back at the end."""
    inpaint = Seen(**pipeline.components)
    inpaint.set_progress_bar_config(disable=True)
    made: list[Image.Image] = []
    overlay = inpaint.image_processor.apply_overlay

    def seen(mask: object, original: object, image: Image.Image, box: object) -> object:
        made.append(image)
        return overlay(mask, original, image, box)

    monkeypatch.setattr(inpaint.image_processor, "apply_overlay", seen)
    picture, mask = photo((75, 110)), masks((75, 110))["soft ellipse"]
    files = ours(picture, mask, tmp_path, size_px=(64, 128), padding=8)
    pictures = inpaint(
        "a cat",
        image=load_image(str(tmp_path / "picture.png")),
        mask_image=load_image(str(tmp_path / "mask.png")),
        height=64,
        width=128,
        padding_mask_crop=8,
        num_inference_steps=2,
        num_images_per_prompt=2,
    ).images
    check_equal(files.mask, inpaint.mask)
    np.testing.assert_array_equal(files.image * (files.mask < 0.5), inpaint.masked_image.numpy())
    found = files.pasted_back(np.stack([np.asarray(image) for image in made]))
    np.testing.assert_array_equal(found, np.stack([np.asarray(image) for image in pictures]))
