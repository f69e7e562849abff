"""Pictures and masks from files, and the part around a mask."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import TensorMismatchError, UsageError
from triptych.types import Array
from triptych.workflows.image_file import read_image, read_pixels
from triptych.workflows.inpaint_files import InpaintFiles, read_inpaint_files
from triptych.workflows.mask_crop import PasteBack, crop_region, cropped

HEIGHT_PX, WIDTH_PX = 75, 110


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(random.integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White in rows 30 to 49 and columns 60 to 79."""
    return saved(Image.fromarray(levels_with_white()), tmp_path)


def levels_with_white() -> Array:
    levels = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    levels[30:50, 60:80] = 255
    return levels


def saved(mask: Image.Image, folder: Path, *, name: str = "mask.png") -> Path:
    path = folder / name
    mask.save(path)
    return path


def read(
    picture: Path,
    mask: Path,
    *,
    size_px: tuple[int, int] | None = None,
    padding_mask_crop: int | None = None,
) -> InpaintFiles:
    return read_inpaint_files(
        picture, mask, size_px=size_px, scale=8, padding_mask_crop=padding_mask_crop
    )


@pytest.mark.parametrize("size_px", [None, (64, 128)])
def test_the_whole_picture(size_px: tuple[int, int] | None, picture: Path, mask: Path) -> None:
    files = read(picture, mask, size_px=size_px)
    height_px, width_px = size_px or (72, 104)
    assert files.image.shape == (1, 3, height_px, width_px)
    assert files.mask.shape == (1, 1, height_px, width_px)
    assert files.mask.dtype == np.float32
    assert files.mask.flags.c_contiguous
    assert set(np.unique(files.mask)) == {0, 1}
    assert files.paste_back is None
    np.testing.assert_array_equal(files.image, read_image(picture, size_px=size_px, scale=8))
    rows, columns = np.nonzero(files.mask[0, 0])
    scale_y, scale_x = height_px / HEIGHT_PX, width_px / WIDTH_PX
    assert abs(rows.min() - 30 * scale_y) < 1
    assert abs(rows.max() + 1 - 50 * scale_y) < 1
    assert abs(columns.min() - 60 * scale_x) < 1
    assert abs(columns.max() + 1 - 80 * scale_x) < 1


def test_the_half_is_the_border(tmp_path: Path) -> None:
    levels = np.zeros((16, 16), np.uint8)
    levels[4:8], levels[8:12] = 127, 128
    picture = saved(Image.new("RGB", (16, 16)), tmp_path, name="picture.png")
    files = read(picture, saved(Image.fromarray(levels), tmp_path))
    assert files.mask[0, 0, :, 0].tolist() == [0] * 8 + [1] * 4 + [0] * 4


def test_the_part_around_the_mask(picture: Path, mask: Path) -> None:
    files = read(picture, mask, size_px=(64, 64), padding_mask_crop=6)
    assert files.paste_back is not None
    assert files.paste_back.box == (54, 24, 86, 56)
    assert files.image.shape == (1, 3, 64, 64)
    rows, columns = np.nonzero(files.mask[0, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 51, 12, 51)


def test_pictures_go_back_where_they_came_from(picture: Path, mask: Path) -> None:
    files = read(picture, mask, size_px=(64, 64), padding_mask_crop=6)
    made = np.zeros((2, 64, 64, 3), np.uint8)
    made[1] = (10, 20, 30)
    pasted = files.pasted_back(made)
    assert pasted.shape == (2, HEIGHT_PX, WIDTH_PX, 3)
    assert pasted.dtype == np.uint8
    repainted = levels_with_white() > 0
    original = read_pixels(picture, name="image")
    for number, colour in enumerate([(0, 0, 0), (10, 20, 30)]):
        np.testing.assert_array_equal(pasted[number][~repainted], original[~repainted])
        assert (pasted[number][repainted] == colour).all()


def test_the_whole_picture_is_given_back_as_it_is(picture: Path, mask: Path) -> None:
    made = np.random.default_rng(1).integers(0, 256, (2, 72, 104, 3), np.uint8)
    np.testing.assert_array_equal(read(picture, mask).pasted_back(made), made, strict=True)


@pytest.mark.parametrize("padding_mask_crop", [None, 0])
def test_pictures_of_another_size(padding_mask_crop: int | None, picture: Path, mask: Path) -> None:
    files = read(picture, mask, size_px=(64, 128), padding_mask_crop=padding_mask_crop)
    with pytest.raises(TensorMismatchError, match=re.escape("want [batch, 64, 128, 3]")):
        files.pasted_back(np.zeros((1, 128, 64, 3), np.uint8))


@pytest.mark.parametrize("size", [(HEIGHT_PX, WIDTH_PX), (WIDTH_PX, HEIGHT_PX + 1), (220, 150)])
def test_a_mask_of_another_size(size: tuple[int, int], picture: Path, tmp_path: Path) -> None:
    mask = saved(Image.new("L", size, 255), tmp_path)
    for padding in (None, 8):
        with pytest.raises(
            UsageError, match=rf"mask\.png: got {size[1]} x {size[0]} px, want 75 x 110 px"
        ):
            read(picture, mask, size_px=(64, 64), padding_mask_crop=padding)


@pytest.mark.parametrize("level", [0, 1, 127])
@pytest.mark.parametrize("padding", [None, 8])
def test_a_mask_without_white(
    level: int, padding: int | None, picture: Path, tmp_path: Path
) -> None:
    mask = saved(Image.new("L", (WIDTH_PX, HEIGHT_PX), level), tmp_path)
    with pytest.raises(UsageError, match=rf"mask\.png: got nothing to repaint.*to {level};"):
        read(picture, mask, size_px=(64, 64), padding_mask_crop=padding)


def test_white_that_resizing_loses(picture: Path, tmp_path: Path) -> None:
    levels = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    levels[40, 40] = 255
    mask = saved(Image.fromarray(levels), tmp_path)
    with pytest.raises(UsageError, match="nothing to repaint in 16 x 16 px, from grey levels 0 to"):
        read(picture, mask, size_px=(16, 16))
    assert read(picture, mask, size_px=(16, 16), padding_mask_crop=4).mask.any()


def test_a_mask_that_is_all_white(picture: Path, tmp_path: Path) -> None:
    mask = saved(Image.new("L", (WIDTH_PX, HEIGHT_PX), 255), tmp_path)
    assert read(picture, mask).mask.all()
    files = read(picture, mask, size_px=(64, 64), padding_mask_crop=8)
    assert files.paste_back is not None
    assert files.paste_back.box == (0, 0, WIDTH_PX, HEIGHT_PX)


def test_files_that_are_no_pictures(picture: Path, mask: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.png"
    with pytest.raises(UsageError, match=r"^image .*absent\.png: got .*want a picture"):
        read(absent, mask)
    with pytest.raises(UsageError, match=r"^mask .*absent\.png: got .*want a picture"):
        read(picture, absent)


def test_a_crop_without_size_or_sense(picture: Path, mask: Path) -> None:
    with pytest.raises(UsageError, match="got 8 and no size_px, want both"):
        read(picture, mask, padding_mask_crop=8)
    with pytest.raises(UsageError, match="got -1, want 0 or more"):
        read(picture, mask, size_px=(64, 64), padding_mask_crop=-1)


@pytest.mark.parametrize("padding", [None, 8])
def test_less_than_one_cell(padding: int | None, picture: Path, mask: Path) -> None:
    with pytest.raises(UsageError, match="got 4 x 64 px, want at least 8 px"):
        read(picture, mask, size_px=(4, 64), padding_mask_crop=padding)


def test_a_picture_too_narrow_to_enlarge(tmp_path: Path) -> None:
    """One row of pixels scaled to the width of the model is less than one row."""
    picture = saved(Image.new("RGB", (1000, 1)), tmp_path, name="picture.png")
    mask = saved(Image.new("L", (1000, 1), 255), tmp_path)
    with pytest.raises(UsageError, match="mask crop: got 1 x 1000 px"):
        read(picture, mask, size_px=(64, 64), padding_mask_crop=8)


def one_bit(levels: Array) -> Image.Image:
    return Image.fromarray(levels).convert("1")


def colours(levels: Array) -> Image.Image:
    return Image.fromarray(levels).convert("RGB")


def palette(levels: Array) -> Image.Image:
    """Numbered against the light: 0 is white, 1 is black."""
    made = Image.fromarray((levels == 0).astype(np.uint8), "P")
    made.putpalette([255, 255, 255, 0, 0, 0])
    return made


def opaque(levels: Array) -> Image.Image:
    return Image.fromarray(levels).convert("RGBA")


def half_transparent(levels: Array) -> Image.Image:
    made = Image.fromarray(levels).convert("LA")
    made.putalpha(100)
    return made


def sixteen_bits(levels: Array) -> Image.Image:
    """Next to black, and white: Pillow's own conversion to grey makes both white."""
    return Image.fromarray(np.where(levels > 0, 65535, 255).astype(np.uint16))


@pytest.mark.parametrize(
    "painted", [one_bit, colours, palette, opaque, half_transparent, sixteen_bits]
)
@pytest.mark.parametrize("padding", [None, 8])
def test_masks_of_every_mode(
    painted: Callable[[Array], Image.Image],
    padding: int | None,
    picture: Path,
    mask: Path,
    tmp_path: Path,
) -> None:
    expected = read(picture, mask, size_px=(72, 104), padding_mask_crop=padding)
    other = saved(painted(levels_with_white()), tmp_path, name="other.png")
    found = read(picture, other, size_px=(72, 104), padding_mask_crop=padding)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.image, expected.image)


def test_a_mask_that_is_only_transparent(picture: Path, tmp_path: Path) -> None:
    """Black all over with a hole in it: transparency is no mask."""
    made = Image.new("RGBA", (WIDTH_PX, HEIGHT_PX), (0, 0, 0, 255))
    made.paste((0, 0, 0, 0), (20, 20, 40, 40))
    with pytest.raises(UsageError, match="transparency does not count"):
        read(picture, saved(made, tmp_path))


@st.composite
def crops(draw: st.DrawFn) -> tuple[Array, tuple[int, int], int]:
    """Grey levels with something in them, a size to enlarge to, and a padding."""
    height_px, width_px = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    levels = np.zeros((height_px, width_px), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        row, column = draw(st.integers(0, height_px - 1)), draw(st.integers(0, width_px - 1))
        levels[row, column] = draw(st.integers(1, 255))
    size_px = draw(st.integers(1, 16)) * 8, draw(st.integers(1, 16)) * 8
    return levels, size_px, draw(st.sampled_from([0, 1, 8, 32, 200]))


def padded(levels: Array, padding_px: int) -> tuple[int, int, int, int]:
    """The rectangle around the mask before it is widened."""
    rows, columns = np.nonzero(levels)
    return (
        max(columns.min() - padding_px, 0),
        max(rows.min() - padding_px, 0),
        min(columns.max() + 1 + padding_px, levels.shape[1]),
        min(rows.max() + 1 + padding_px, levels.shape[0]),
    )


@settings(deadline=None)
@given(crops())
def test_the_region_holds_the_padded_mask_and_stays_in_the_picture(
    crop: tuple[Array, tuple[int, int], int],
) -> None:
    """It grows in one direction only."""
    levels, size_px, padding_px = crop
    left, top, right, bottom = crop_region(levels, size_px=size_px, padding_px=padding_px)
    around = padded(levels, padding_px)
    assert 0 <= left <= around[0]
    assert 0 <= top <= around[1]
    assert around[2] <= right <= levels.shape[1]
    assert around[3] <= bottom <= levels.shape[0]
    assert (left, right) == around[0::2] or (top, bottom) == around[1::2]


@settings(deadline=None)
@given(crops())
def test_the_region_has_the_aspect_that_the_picture_allows(
    crop: tuple[Array, tuple[int, int], int],
) -> None:
    """Less than a pixel off, unless it spans the whole picture where it would have to grow."""
    levels, size_px, padding_px = crop
    left, top, right, bottom = crop_region(levels, size_px=size_px, padding_px=padding_px)
    height_px, width_px = bottom - top, right - left
    aspect = size_px[1] / size_px[0]
    too_wide = width_px / aspect - height_px
    too_high = height_px * aspect - width_px
    assert too_wide < 1 or height_px == levels.shape[0]
    assert too_high < 1 or width_px == levels.shape[1]


@settings(deadline=None)
@given(crops(), st.integers(0, 2**32 - 1))
def test_what_is_black_in_the_mask_stays_as_it_was(
    crop: tuple[Array, tuple[int, int], int], seed: int
) -> None:
    levels, size_px, padding_px = crop
    random = np.random.default_rng(seed)
    original = random.integers(0, 256, (*levels.shape, 3), np.uint8)
    made = random.integers(0, 256, (*size_px, 3), np.uint8)
    box = crop_region(levels, size_px=size_px, padding_px=padding_px)
    pasted = PasteBack(original=original, levels=levels, box=box).pasted(made)
    np.testing.assert_array_equal(pasted[levels == 0], original[levels == 0])


def test_greys_of_the_mask_mix_both() -> None:
    levels = np.array([[0, 51, 102, 204, 255]], np.uint8)
    original, made = np.full((1, 5, 3), 200, np.uint8), np.full((1, 5, 3), 100, np.uint8)
    pasted = PasteBack(original=original, levels=levels, box=(0, 0, 5, 1)).pasted(made)
    expected = np.array([200, 180, 160, 120, 100])
    assert np.abs(pasted[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size_px", [(64, 64), (64, 24), (24, 64)])
def test_a_part_of_another_aspect_is_whole_and_leaves_no_gap(size_px: tuple[int, int]) -> None:
    """A part of one colour fills everything with it."""
    part = np.full((30, 40, 3), (200, 100, 50), np.uint8)
    part[:, :10] = 0
    filled = cropped(part, box=(10, 0, 40, 30), size_px=size_px)
    assert filled.shape == (*size_px, 3)
    assert (filled == (200, 100, 50)).all()
