"""SDXL's training sizes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.sampling.size_buckets import SIZE_BUCKETS, nearest_bucket


def test_the_sizes_are_the_papers() -> None:
    assert len(set(SIZE_BUCKETS)) == len(SIZE_BUCKETS) == 40
    assert all(height % 64 == width % 64 == 0 for height, width in SIZE_BUCKETS)
    areas = [height * width / 1024**2 for height, width in SIZE_BUCKETS]
    assert 0.9 <= min(areas) <= max(areas) <= 1.0


@pytest.mark.parametrize(
    ("aspect_ratio", "size"),
    [
        (1.0, (1024, 1024)),
        (1152 / 896, (896, 1152)),
        (896 / 1152, (1152, 896)),
        (1216 / 832, (832, 1216)),
        (832 / 1216, (1216, 832)),
        (16 / 9, (768, 1344)),
        (100.0, (512, 2048)),
        (0.01, (2048, 512)),
    ],
)
def test_the_nearest_shape(aspect_ratio: float, size: tuple[int, int]) -> None:
    assert nearest_bucket(aspect_ratio, trained_px=1024, scale=8) == size


@given(
    aspect_ratio=st.floats(0.05, 20),
    trained_px=st.sampled_from([128, 512, 768, 1024]),
    scale=st.sampled_from([8, 16]),
)
def test_models_of_any_size_get_edges_they_can_make(
    aspect_ratio: float, trained_px: int, scale: int
) -> None:
    height_px, width_px = nearest_bucket(aspect_ratio, trained_px=trained_px, scale=scale)
    assert height_px % scale == width_px % scale == 0
    assert height_px >= scale
    assert width_px >= scale
    exact = nearest_bucket(aspect_ratio, trained_px=1024, scale=8)
    drawn = abs(math.log(width_px / height_px) - math.log(exact[1] / exact[0]))
    assert drawn < 2 * scale / min(height_px, width_px)
