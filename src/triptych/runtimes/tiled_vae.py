"""A runtime whose VAE is shown tiles that overlap, so that its memory is a tile's.

Each tile has group norms of its own, so the picture differs a little from the untiled one; where
tiles meet they are faded into each other.

Source:
    diffusers 0.39 autoencoder_kl.py, tiled_decode, _tiled_encode, blend_v and blend_h, with its
    tile_overlap_factor of a quarter. diffusers' tile is the size the VAE was trained at.
"""

from collections.abc import Callable
from typing import Final, TypeAlias, final

import numpy as np

from triptych.bundle.bundle import Artifact
from triptych.errors import UsageError
from triptych.runtimes.base import Execution, Probe, Runtime, Session
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, TensorMap

_OVERLAP: Final = 4
"""A tile shares the quarter of its edge with the next."""

_TILE_MULTIPLE_PX: Final = 32
"""Edges that have a whole quarter in latent cells of 8 pixels."""

_Apply: TypeAlias = Callable[[Array], Array]


@final
class TiledVae:
    """Another runtime, with its VAE in tiles."""

    def __init__(self, runtime: Runtime, *, tile_px: int, scale: int) -> None:
        """Wrap a runtime.

        Args:
            runtime: the engine.
            tile_px: edge of a tile of the picture.
            scale: pixels of a latent cell.

        Raises:
            UsageError: tiles cannot be of that size.
        """
        if tile_px <= 0 or tile_px % _TILE_MULTIPLE_PX:
            raise UsageError(
                f"vae_tile_px: got {tile_px}, want a positive multiple of {_TILE_MULTIPLE_PX}."
            )
        self._runtime = runtime
        self._tile_px = tile_px
        self._tile_cells = tile_px // scale

    @property
    def name(self) -> str:
        """The engine's."""
        return self._runtime.name

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """The engine's."""
        return self._runtime.formats

    def open(self, artifact: Artifact) -> Session:
        """The engine's session, in tiles where it is one of the VAE's halves."""
        session = self._runtime.open(artifact)
        match artifact.spec.name:
            case "vae_decoder":
                return _TiledSession(session, tile=self._tile_cells, made=self._tile_px)
            case "vae_encoder":
                return _TiledSession(session, tile=self._tile_px, made=self._tile_cells)
            case _:
                return session

    def probe(self) -> Probe:
        """The engine's."""
        return self._runtime.probe()


@final
class _TiledSession:
    """A session of one input and one output, [batch, channels, height, width] each."""

    def __init__(self, session: Session, *, tile: int, made: int) -> None:
        self._session = session
        self._tile = tile
        self._made = made

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The session's."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The session's."""
        return self._session.outputs

    @property
    def execution(self) -> Execution:
        """The session's."""
        return self._session.execution

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """As the session's; what fits into one tile is left whole."""
        ((given, values),) = feed.items()
        if max(values.shape[2:]) <= self._tile:
            return self._session.run(feed, outputs)
        (output,) = outputs

        def apply(part: Array) -> Array:
            return self._session.run({given: np.ascontiguousarray(part)}, outputs)[output]

        return {output: run_in_tiles(apply, values, tile=self._tile, made=self._made)}

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def run_in_tiles(apply: _Apply, values: Array, *, tile: int, made: int) -> Array:
    """Apply something to overlapping tiles and fade its results into each other.

    Args:
        apply: makes [batch, channels, height x made / tile, width x made / tile].
        values: [batch, channels, height, width].
        tile: edge of a tile, divisible by four.
        made: edge of what is made of a tile, divisible by four.
    """
    step, fade = tile - tile // _OVERLAP, made // _OVERLAP
    kept = made - fade
    rows: list[Array] = []
    above: list[Array] = []
    for top in range(0, values.shape[2], step):
        row: list[Array] = []
        for left in range(0, values.shape[3], step):
            result = np.array(apply(values[:, :, top : top + tile, left : left + tile]))
            if above:
                _fade(above[len(row)], result, fade, axis=2)
            if row:
                _fade(row[-1], result, fade, axis=3)
            row.append(result)
        rows.append(np.concatenate([result[:, :, :kept, :kept] for result in row], axis=3))
        above = row
    return np.concatenate(rows, axis=2)


def _fade(before: Array, after: Array, extent: int, *, axis: int) -> None:
    """Begin a tile with what the one before it ends with, less and less; changes `after`."""
    length = min(before.shape[axis], after.shape[axis], extent)
    weight = np.arange(length, dtype=np.float32) / np.float32(length)
    weight = weight.reshape((-1, 1) if axis == 2 else (-1,))
    end = np.take(before, range(before.shape[axis] - length, before.shape[axis]), axis=axis)
    start = (slice(None),) * axis + (slice(length),)
    after[start] = end * (1 - weight) + after[start] * weight
