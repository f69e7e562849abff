"""A run whose VAE sees tiles, and how far its picture is from one that was decoded whole."""

from dataclasses import asdict, dataclass, replace
from typing import final

from triptych.parity.metrics import max_abs, psnr_db
from triptych.runtimes.tiled_vae import TiledVae
from triptych.sampling.pipeline import decode
from triptych.types import ImageFloats, Latents
from triptych.workflows.stages import Plan


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TilingRecord:
    """What run.json says of tiles.

    Attributes:
        tile_px: edge of a tile.
        psnr_db: of the last picture against the untiled one; None where that was not asked for.
        max_abs: greatest difference of them, in -1 to 1; None as `psnr_db`.
    """

    tile_px: int
    psnr_db: float | None
    max_abs: float | None

    def to_json(self) -> dict[str, object]:
        """For run.json."""
        return asdict(self)


def in_tiles(plan: Plan, tile_px: int) -> Plan:
    """The same plan, with every stage's VAE in tiles.

    Raises:
        UsageError: tiles cannot be of that size.
    """
    return replace(
        plan,
        stages=tuple(
            replace(
                stage,
                runtime=TiledVae(
                    stage.runtime, tile_px=tile_px, scale=stage.bundle.config.vae_scale_factor
                ),
            )
            for stage in plan.stages
        ),
    )


def record_tiling(
    untiled: Plan, tile_px: int, *, image: ImageFloats, latents: Latents, compared: bool
) -> TilingRecord:
    """Say what was done, and decode once more without tiles where the difference is asked for.

    Args:
        untiled: the plan whose last stage's engine sees no tiles.
        tile_px: edge of the tiles.
        image: what they made.
        latents: of what.
        compared: whether to decode whole.
    """
    if not compared:
        return TilingRecord(tile_px=tile_px, psnr_db=None, max_abs=None)
    stage = untiled.stages[-1]
    whole = decode(stage.bundle, stage.runtime, {"": latents})[""]
    return TilingRecord(
        tile_px=tile_px, psnr_db=psnr_db(image, whole), max_abs=max_abs(image, whole).value
    )
