"""What a picture shows, and how it is said in words."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias, final, get_args

ShapeName: TypeAlias = Literal["circle", "square", "triangle", "ring"]
SizeName: TypeAlias = Literal["small", "large"]
Place: TypeAlias = Literal["center", "left", "right", "top", "bottom"]
ColorName: TypeAlias = Literal[
    "red", "orange", "yellow", "green", "blue", "purple", "white", "black"
]

Rgb: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

COLORS: Mapping[ColorName, Rgb] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 220, 60),
    "green": (40, 160, 80),
    "blue": (40, 90, 215),
    "purple": (140, 60, 190),
    "white": (248, 248, 248),
    "black": (24, 24, 28),
}

_HELD_OUT_SHARE = 0.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One shape on a background of another colour.

    Attributes:
        shape: what is there.
        color: its colour.
        size: how large it is.
        place: where its middle is.
        background: the colour of everything else.
    """

    shape: ShapeName
    color: ColorName
    size: SizeName
    place: Place
    background: ColorName


def iter_scenes() -> Iterator[Scene]:
    """All 2240 scenes, always in the same order."""
    kinds = product(*map(get_args, (ShapeName, ColorName, SizeName, Place, ColorName)))
    for shape, color, size, place, background in kinds:
        if color != background:
            yield Scene(shape=shape, color=color, size=size, place=place, background=background)


def caption(scene: Scene) -> str:
    """The scene in words, for example "a small red circle at the left on a blue background"."""
    where = "in the center" if scene.place == "center" else f"at the {scene.place}"
    ground = f"{'an' if scene.background[0] in 'aeiou' else 'a'} {scene.background} background"
    return f"a {scene.size} {scene.color} {scene.shape} {where} on {ground}"


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is one in ten that training never sees.

    The hash of its caption decides, so that it is the same scenes everywhere.
    """
    digest = hashlib.sha256(caption(scene).encode()).digest()
    return int.from_bytes(digest[:8]) < _HELD_OUT_SHARE * 2**64


def held_out_scenes(count: int | None = None) -> tuple[Scene, ...]:
    """Scenes that training never saw, in an order without pattern; the first of them, or all.

    Args:
        count: how many; None takes all. More than there are gives all.
    """
    scenes = [scene for scene in iter_scenes() if is_held_out(scene)]
    scenes.sort(key=lambda scene: hashlib.sha256(b"order " + caption(scene).encode()).digest())
    return tuple(scenes[:count])
