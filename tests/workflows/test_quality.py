"""What quality measures, on the trained model that comes along and on one that draws nothing."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image

from triptych.errors import UsageError
from triptych.runtimes.base import RuntimeSettings
from triptych.scenes.judge import Agreement
from triptych.scenes.scene import caption, held_out_scenes
from triptych.testing.demo_model import DEMO_MODEL
from triptych.types import Picture
from triptych.workflows.quality import QualityReport, QualityRequest, adherence, measure_quality

Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


def silent(stage: str, fraction: float) -> None:
    del stage
    assert 0 <= fraction <= 1


def measured(*bundles: Path, num_prompts: int = 6, **request: object) -> QualityReport:
    return measure_quality(
        QualityRequest(bundles=bundles, num_prompts=num_prompts, **request),  # type: ignore[arg-type]
        report=silent,
    )


def test_adherence_counts_each_part_for_itself() -> None:
    all_right = Agreement(shape=True, color=True, size=True, place=True, background=True)
    wrong_shape = Agreement(shape=False, color=True, size=True, place=True, background=True)
    unreadable = Agreement(shape=False, color=False, size=False, place=False, background=False)
    shares = adherence([all_right, all_right, wrong_shape, unreadable])
    assert (shares.shape, shares.whole) == (0.5, 0.5)
    assert (shares.color, shares.size, shares.place, shares.background) == (0.75,) * 4


@pytest.mark.slow
def test_every_engine_draws_the_same_and_says_how_far_it_is(demo_onnx_folder: Path) -> None:
    report = measured(
        demo_onnx_folder,
        runtimes=["onnxruntime", "openvino"],
        reference=DEMO_MODEL,
        runtime_settings=RuntimeSettings(num_threads=1),
    )
    assert report.prompts == tuple(map(caption, held_out_scenes(6)))
    assert [row.runtime for row in report.rows] == ["pytorch", "onnxruntime", "openvino"]
    reference, *others = report.rows
    assert reference.psnr_db == np.inf
    assert reference.adherence.whole >= 0.5
    for row in others:
        assert row.adherence == reference.adherence
        assert row.psnr_db is not None
        assert row.psnr_db > 60
        assert row.size_bytes > 1.9 * reference.size_bytes  # float32 beside float16
        assert (row.path, row.precision) == (demo_onnx_folder, "fp32")


@pytest.mark.slow
def test_a_model_that_draws_texture_fulfils_no_prompt(onnx_folder: Path) -> None:
    [row] = measured(onnx_folder, num_prompts=2).rows
    assert row.adherence.whole == 0
    assert row.psnr_db is None


@pytest.mark.slow
def test_pictures_are_those_of_sample_from_the_seed_of_their_number(
    triptych: Cli, demo_onnx_folder: Path, tmp_path: Path
) -> None:
    seen: dict[tuple[int, int], Picture] = {}

    def keep(row: int, index: int, picture: Picture) -> None:
        seen[row, index] = picture

    request = QualityRequest(bundles=[demo_onnx_folder], num_prompts=2)
    report = measure_quality(request, report=silent, on_picture=keep)

    assert list(seen) == [(0, 0), (0, 1)]
    done = triptych(
        "sample", demo_onnx_folder, "--prompt", report.prompts[1], "--seed", "1",
        "--num-inference-steps", "20", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "final.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), seen[0, 1])


@pytest.mark.parametrize("num_prompts", [0, -1, 231])
def test_more_prompts_than_there_are_and_none_are_refused(num_prompts: int) -> None:
    with pytest.raises(UsageError, match="want 1 to 230"):
        measured(DEMO_MODEL, num_prompts=num_prompts)


def test_an_engine_that_reads_no_bundle_is_refused(onnx_folder: Path) -> None:
    with pytest.raises(UsageError, match="pytorch"):
        measured(onnx_folder, runtimes=["pytorch"])
