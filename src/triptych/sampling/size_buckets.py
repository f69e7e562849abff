"""The sizes that SDXL was trained at, and the one that is nearest to a shape."""

import math

SIZE_BUCKETS: tuple[tuple[int, int], ...] = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664),
    (640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280),
    (832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024),
    (1024, 960), (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768),
    (1344, 768), (1408, 704), (1472, 704), (1536, 640), (1600, 640), (1664, 576), (1728, 576),
    (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip
"""Height and width in pixels, of about 1024 x 1024 px each.

Source: Podell et al. 2023, arXiv:2307.01952, appendix I.
"""

_TRAINED_PX = 1024


def nearest_bucket(aspect_ratio: float, *, trained_px: int, scale: int) -> tuple[int, int]:
    """Height and width of the training size whose shape is nearest.

    Args:
        aspect_ratio: width over height.
        trained_px: edge of the squares that the model was trained at: 1024 for SDXL. Models
            trained at another size get the same shapes of theirs.
        scale: image pixels for one latent cell, which the edges are multiples of.
    """
    wanted = math.log(aspect_ratio)
    height_px, width_px = min(
        SIZE_BUCKETS, key=lambda size: abs(math.log(size[1] / size[0]) - wanted)
    )
    shrunk = (round(edge * trained_px / _TRAINED_PX / scale) for edge in (height_px, width_px))
    height_cells, width_cells = shrunk
    return max(height_cells, 1) * scale, max(width_cells, 1) * scale
