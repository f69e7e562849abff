"""The demo's contact sheet, and the folders it leaves alone; a whole demo runs in tests/cli."""

from pathlib import Path

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.types import ImagePixels
from triptych.workflows.demo import draw_contact_sheet, run_demo

STEPS = (1, 8)


def plain(colour: tuple[int, int, int]) -> ImagePixels:
    return np.broadcast_to(np.array(colour, np.uint8), (1, 40, 60, 3)).copy()


def test_contact_sheet_has_a_row_a_runtime_and_a_column_a_step() -> None:
    colours = {
        "first": {1: (200, 0, 0), 8: (0, 200, 0)},
        "second": {1: (0, 0, 200), 8: (200, 200, 0)},
    }
    rows = {
        name: {step: plain(colour) for step, colour in row.items()} for name, row in colours.items()
    }

    sheet = draw_contact_sheet(rows, steps=STEPS)

    assert sheet.shape == (28 + 2 * (40 + 6), 170 + 2 * (60 + 6), 3)
    for row, pictures in enumerate(colours.values()):
        for column, colour in enumerate(pictures.values()):
            top, left = 28 + row * 46, 170 + column * 66
            picture = sheet[top : top + 40, left : left + 60]
            np.testing.assert_array_equal(picture, np.broadcast_to(colour, (40, 60, 3)))
    assert (sheet[:, :170] != 255).any()  # the runtimes' names
    assert (sheet[:28, 170:] != 255).any()  # the steps'


def test_contact_sheet_takes_only_the_steps_it_shows() -> None:
    rows = {"first": {1: plain((1, 2, 3)), 4: plain((9, 99, 9)), 8: plain((4, 5, 6))}}
    sheet = draw_contact_sheet(rows, steps=STEPS)
    assert sheet.shape == (28 + 46, 170 + 2 * 66, 3)
    assert not (sheet == (9, 99, 9)).all(axis=2).any()


def test_a_folder_that_is_no_demo_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="contact_sheet"):
        run_demo(tmp_path, report=lambda _, __: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
