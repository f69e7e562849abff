"""A picture, or latents, that a run starts from instead of noise alone."""

from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError
from triptych.types import ImageFloats, ImageMask, Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStart:
    """A picture to start from instead of noise alone; or its latents.

    Attributes:
        image: pictures in -1 to 1, one for all or one for each; None where latents are given.
        latents: scaled, as a run leaves them; None where pictures are given.
        strength: how much is made anew, 0 to 1. Counts for nothing with `denoising_start`.
        mask: what of the picture is made anew, from 0.5 up, at the picture's size; None for all.
    """

    image: ImageFloats | None = None
    latents: Latents | None = None
    strength: float = 0.3
    mask: ImageMask | None = None

    def __post_init__(self) -> None:
        """Refuse both, and neither.

        Raises:
            UsageError: as said.
        """
        if (self.image is None) == (self.latents is None):
            raise UsageError("start: got both or none of image and latents, want one of them.")

    def size_px(self, *, scale: int) -> tuple[int, int]:
        """Height and width of the pictures; `scale` is image pixels for one latent cell.

        Raises:
            UsageError: an edge is not divisible by `scale`, or the mask is of another size.
        """
        if self.latents is not None:
            height_px, width_px = self.latents.shape[2] * scale, self.latents.shape[3] * scale
        else:
            assert self.image is not None  # noqa: S101  __post_init__ holds it
            height_px, width_px = self.image.shape[2:]
        if height_px % scale or width_px % scale:
            raise UsageError(
                f"image: got {height_px} x {width_px} px, want edges divisible by {scale}. "
                "Crop or resize it."
            )
        if self.mask is not None and self.mask.shape[2:] != (height_px, width_px):
            got_height, got_width = self.mask.shape[2:]
            raise UsageError(
                f"mask: got {got_height} x {got_width} px, want {height_px} x {width_px} "
                "(height x width), as the picture. Crop or resize it."
            )
        return height_px, width_px
