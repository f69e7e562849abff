import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.workflows.generation.save_steps import check_saved_steps, step_arithmetic


def test_one_run_of_32_steps_in_place_of_61() -> None:
    arithmetic = step_arithmetic((1, 4, 8, 16, 32), num_pictures=800 * 5)
    assert (arithmetic.steps_separately, arithmetic.steps_together) == (61, 32)
    assert (arithmetic.total_separately, arithmetic.total_together) == (244_000, 128_000)
    assert arithmetic.ratio == pytest.approx(1.906, abs=5e-4)
    assert arithmetic.share_spared == pytest.approx(0.475, abs=5e-4)


@given(steps=st.sets(st.integers(1, 100), min_size=1), num_pictures=st.integers(0, 10_000))
def test_one_run_is_never_dearer(steps: set[int], num_pictures: int) -> None:
    arithmetic = step_arithmetic(steps, num_pictures=num_pictures)
    assert arithmetic.total_together <= arithmetic.total_separately
    assert arithmetic.ratio >= 1
    assert (arithmetic.share_spared == 0) == (len(steps) == 1)


def test_steps_are_sorted_and_each_once() -> None:
    assert check_saved_steps([32, 1, 4, 1], max_inference_steps=32) == (1, 4, 32)


@pytest.mark.parametrize("step", [0, -1, 33, 1000])
def test_a_step_that_the_run_does_not_have_is_refused(step: int) -> None:
    """Its picture would never be there, and every rerun would make the others again."""
    with pytest.raises(UsageError, match=rf"got {step}, want 1 to 32.*--max-inference-steps"):
        check_saved_steps([1, step], max_inference_steps=32)


def test_no_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="save steps: got none"):
        check_saved_steps([], max_inference_steps=32)
    with pytest.raises(UsageError, match="max_inference_steps: got 0"):
        check_saved_steps([1], max_inference_steps=0)
