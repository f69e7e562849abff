"""Hypotheses follow from what was seen, and from nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.parity.compare import compare
from triptych.parity.hints import find_hints
from triptych.parity.report import Row, Stage, with_comparison
from triptych.types import ComponentName


def row(
    rel_l2: float,
    *,
    stage: Stage = "component",
    component: ComponentName = "unet",
    tensor: str = "noise_pred",
    timestep: float | None = None,
) -> Row:
    """A row that failed, unless it is at 1e-6 or nearer."""
    expected = np.random.default_rng(0).standard_normal(512)
    error = np.random.default_rng(1).standard_normal(512)
    actual = expected + rel_l2 * error * np.linalg.norm(expected) / np.linalg.norm(error)
    found = compare(actual, expected, component=component, tensor=tensor)
    bare = Row(
        stage=stage,
        component=component,
        case="",
        timestep=timestep,
        precision="fp32",
        verdict="passed" if rel_l2 <= 1e-6 else "failed",
    )
    return with_comparison(bare, found)


def failed(stage: Stage, component: ComponentName, case: str = "", reason: str = "") -> Row:
    return Row(
        stage=stage,
        component=component,
        case=case,
        precision="fp32",
        verdict="failed",
        reason=reason,
    )


def scaled(factor: float) -> Row:
    expected = np.random.default_rng(0).standard_normal(512)
    found = compare(expected * factor, expected, component="vae_decoder", tensor="image")
    return with_comparison(failed("component", "vae_decoder"), found)


def test_where_all_is_well_there_is_nothing_to_explain() -> None:
    assert find_hints([row(1e-7), row(1e-6, timestep=999.0), row(1e-9, timestep=1.0)]) == ()
    assert find_hints([]) == ()


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([failed("precision", "unet", "declared fp32, ran bf16")], "another precision"),
        (
            [failed("precision", "unet", "weights declared fp16, stored int8")],
            "other weights than its manifest says",
        ),
        ([failed("finiteness", "vae_decoder", reason="NaN")], "overflows in half precision"),
        ([failed("image", "vae_decoder", reason="one colour")], "overflows in half precision"),
        (
            [
                row(1e-2, component="text_encoder_2", tensor="text_embeds"),
                row(1e-7, component="text_encoder_2", tensor="hidden_states"),
            ],
            "pooled embedding",
        ),
        ([row(5.0)], "another tensor"),
        ([scaled(1.01)], "multiplied by a constant"),
        ([row(4e-3, timestep=951.0), row(7e-4, timestep=1.0)], "sinusoid is rounded"),
        ([replace(row(1e-2), branch="unconditional")], "one half of the guidance batch"),
        (
            [
                replace(row(1e-2, stage="teacher_forced"), error_cosine=cosine)
                for cosine in (None, 0.99, 0.97, 0.95)
            ],
            "a constant is wrong",
        ),
        (
            [row(1e-7), row(1e-7, stage="teacher_forced"), row(0.3, stage="free_running")],
            "the run is wrong and not the networks",
        ),
    ],
)
def test_signatures(rows: list[Row], cause: str) -> None:
    hints = find_hints(rows)
    assert any(cause in hint.cause for hint in hints), hints
    for hint in hints:
        assert hint.evidence
        assert hint.confirm.startswith("triptych ")


@pytest.mark.parametrize("cosines", [(None, 0.99, 0.97, -0.2), (None, 0.97, 0.5)])
def test_a_wrong_constant_is_told_by_the_median_which_one_step_does_not_move(
    cosines: tuple[float | None, ...],
) -> None:
    rows = [replace(row(1e-2, stage="teacher_forced"), error_cosine=cosine) for cosine in cosines]
    (hint,) = [hint for hint in find_hints(rows) if "constant is wrong" in hint.cause]
    assert hint.evidence == "errors of neighbouring steps have a cosine of 0.97 in the median"


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (
            [
                row(1e-2, component="text_encoder_2", tensor="text_embeds"),
                row(1e-2, component="text_encoder_2", tensor="hidden_states"),
            ],
            "pooled embedding",
        ),
        ([row(1e-2)], "another tensor"),
        ([row(1e-2)], "multiplied by a constant"),
        ([row(1e-3, timestep=951.0), row(7e-4, timestep=1.0)], "sinusoid"),
        ([row(7e-4, timestep=951.0), row(4e-3, timestep=1.0)], "sinusoid"),
        (
            [
                replace(row(1e-2), branch="unconditional"),
                replace(row(1e-2), branch="conditional"),
            ],
            "one half",
        ),
        (
            [
                replace(row(1e-2, stage="teacher_forced"), error_cosine=cosine)
                for cosine in (None, 0.1, -0.05, 0.0)
            ],
            "a constant is wrong",
        ),
        ([row(1e-2), row(0.3, stage="free_running")], "not the networks"),
        ([failed("finiteness", "unet", reason="NaN")], "overflows"),
    ],
)
def test_what_does_not_follow_is_not_said(rows: list[Row], cause: str) -> None:
    assert not any(cause in hint.cause for hint in find_hints(rows))
