"""The rules of shapes, slices and indices that are easily got wrong, by generation of operators."""

from collections.abc import Callable
from pathlib import Path

import coremltools
import numpy as np
import pytest
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import get_new_symbol, types

from triptych.errors import BackendError
from triptych.runtimes._mil.interpreter import open_program, run

Compute = Callable[..., list[np.ndarray]]

X = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("iOS16", [4, 6]),
        ("iOS16", [-1]),
        ("iOS16", [0, 0, 4]),
        ("iOS16", [0, -1, 2]),
        ("iOS17", [0, 0, 4]),
        ("iOS17", [2, -1, 0]),
        ("iOS17", [-1, 0]),  # 0 counts from the back: 4 here, where iOS16 refuses
        ("iOS17", [0, -1, 0, 0]),  # no fourth axis from the back: 1
    ],
)
def test_reshape(target: str, shape: list[int], compute: Compute, define: Compute) -> None:
    def body(x: object) -> object:
        return Builder.reshape(x=x, shape=shape)

    (got,), (want,) = compute(body, X, target=target), define(body, X, target=target)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [3, 1], [-1, 0], [0, -2]])
def test_expand_dims_counts_axes_of_the_result(
    axes: list[int], compute: Compute, define: Compute
) -> None:
    def body(x: object) -> object:
        return Builder.expand_dims(x=x, axes=axes)

    assert compute(body, X)[0].shape == define(body, X)[0].shape


def test_squeeze_leaves_a_listed_axis_of_another_length(compute: Compute) -> None:
    feed = {"x": np.ones((1, 3, 1), np.float32)}
    (got,) = compute(lambda x: Builder.squeeze(x=x, axes=[0, 1]), feed)
    assert got.shape == (3, 1)


def test_concat_interleaved(compute: Compute) -> None:
    feed = {
        "x": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        "y": np.array([[7, 8], [9, 10], [11, 12]], np.float32),
    }
    (got,) = compute(lambda x, y: Builder.concat(values=[x, y], axis=0, interleave=True), feed)
    # The example of the operator's definition.
    np.testing.assert_array_equal(got, [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]])


@pytest.mark.parametrize(
    "settings",
    [
        {"begin": [0, 1, 2], "end": [2, 3, 4]},
        {"begin": [-1, 0, -3], "end": [2, -1, 2147483647]},
        {"begin": [0, 0, 0], "end": [2, 3, 4], "stride": [1, 2, 3]},
        {"begin": [1, 2, 3], "end": [0, 0, 0], "stride": [-1, -1, -2]},
        {"begin": [9, 1, 9], "end": [9, 2, 4], "begin_mask": [1, 0, 1], "end_mask": [1, 0, 0]},
        {"begin": [1, 1, 1], "end": [0, 0, 0], "stride": [-1, 1, -1], "end_mask": [1, 1, 1]},
        {"begin": [1, 0, -1], "end": [0, 3, 0], "squeeze_mask": [1, 0, 1]},
        {"begin": [5, 0, 0], "end": [0, 3, 4], "begin_mask": [1, 0, 0], "squeeze_mask": [1, 0, 0]},
        {"begin": [1, 1, 0], "end": [2, 2, 4]},
    ],
)
def test_slice_by_index(settings: dict[str, list[int]], compute: Compute, define: Compute) -> None:
    given = {
        name: np.array(value, bool) if name.endswith("mask") else value
        for name, value in settings.items()
    }

    def body(x: object) -> object:
        return Builder.slice_by_index(x=x, **given)

    np.testing.assert_array_equal(compute(body, X)[0], define(body, X)[0])


@pytest.mark.parametrize(
    ("begin", "size"), [([0, 1, 2], [2, 1, 2]), ([1, 0, 1], [-1, 3, -1]), ([-1, -3, 0], [1, 2, 4])]
)
def test_slice_by_size(
    begin: list[int], size: list[int], compute: Compute, define: Compute
) -> None:
    def body(x: object) -> object:
        return Builder.slice_by_size(x=x, begin=begin, size=size)

    np.testing.assert_array_equal(compute(body, X)[0], define(body, X)[0])


def test_a_shape_computed_by_the_program(compute: Compute) -> None:
    def body(x: object) -> object:
        first = Builder.slice_by_index(x=Builder.shape(x=x), begin=[0], end=[1])
        return Builder.reshape(x=x, shape=Builder.concat(values=[first, [12]], axis=0))

    (got,) = compute(body, X)
    assert got.shape == (2, 12)


GATHERED = {"x": X["x"], "indices": np.array([0, -1, 2], np.int32)}


def gather(x: object, indices: object) -> object:
    return Builder.gather(x=x, indices=indices, axis=1)


def test_negative_indices_count_from_the_back_up_to_ios16(compute: Compute) -> None:
    (got,) = compute(gather, GATHERED, target="iOS16")
    np.testing.assert_array_equal(got, X["x"][:, [0, -1, 2]])


@pytest.mark.parametrize(("target", "index"), [("iOS17", -1), ("iOS17", 3), ("iOS16", 3)])
def test_an_index_outside_is_refused(target: str, index: int, compute: Compute) -> None:
    feed = {"x": X["x"], "indices": np.array([0, index], np.int32)}
    with pytest.raises(BackendError, match=r"gather 'gather_\d+': got indices from"):
        compute(gather, feed, target=target)


def test_narrow_indices_keep_their_values(compute: Compute) -> None:
    """Converters narrow indices to uint16 where the axis is short enough."""
    feed = {
        "x": np.arange(40_000, dtype=np.float32),
        "indices": np.array([0, 39_999, 32_768], np.int32),
    }

    def body(x: object, indices: object) -> object:
        return Builder.gather(x=x, indices=Builder.cast(x=indices, dtype="uint16"), axis=0)

    (got,) = compute(body, feed)
    np.testing.assert_array_equal(got, [0, 39_999, 32_768])


def test_an_integer_too_large_for_its_dtype_is_refused(compute: Compute) -> None:
    feed = {"x": np.array([1, 70_000], np.int32)}

    def body(x: object) -> object:
        return Builder.cast(x=Builder.cast(x=x, dtype="uint16"), dtype="int32")

    with pytest.raises(BackendError, match="uint16 holds no more"):
        compute(body, feed)


def masked_attention(query: object, key: object, value: object, attn_mask: object) -> object:
    return Builder.scaled_dot_product_attention(
        query=query, key=key, value=value, attn_mask=attn_mask
    )


def attention_feed(mask: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal((1, 2, 3, 4)).astype(np.float32)
        for name in ("query", "key", "value")
    }
    return {**tensors, "attn_mask": mask.astype(np.float32)}


def test_attention_adds_its_mask(compute: Compute, define: Compute) -> None:
    feed = attention_feed(np.where(np.tri(3) > 0, 0.5, -np.inf))
    actual = compute(masked_attention, feed, target="iOS18")
    np.testing.assert_allclose(
        actual[0], define(masked_attention, feed, target="iOS18")[0], rtol=2e-6, atol=2e-6
    )


def test_attention_leaves_out_what_a_truth_mask_denies(compute: Compute) -> None:
    def body(attn_mask: object, **tensors: object) -> object:
        allowed = Builder.greater(x=attn_mask, y=0.0)
        return Builder.scaled_dot_product_attention(attn_mask=allowed, **tensors)

    truths = attention_feed(np.tri(3))
    numbers = attention_feed(np.where(np.tri(3) > 0, 0.0, -np.inf))
    np.testing.assert_array_equal(
        compute(body, truths, target="iOS18")[0],
        compute(masked_attention, numbers, target="iOS18")[0],
    )


def test_a_row_that_is_masked_altogether_is_nan_by_definition(compute: Compute) -> None:
    feed = attention_feed(np.full((3, 3), -np.inf))
    (got,) = compute(masked_attention, feed, target="iOS18", check_finite=False)
    assert np.isnan(got).all()


def test_a_program_with_an_open_axis(save_program: Callable[..., Path]) -> None:
    def body(x: object) -> object:
        return Builder.reshape(x=Builder.exp(x=x), shape=[-1])

    open_length = Builder.placeholder(shape=(get_new_symbol(), 3), dtype=types.fp32)
    package = save_program(
        body,
        {},
        placeholders={"x": open_length},
        inputs=[coremltools.TensorType("x", (coremltools.RangeDim(1, 8, default=2), 3))],
    )
    program = open_program(package)
    assert program.inputs[0].shape == ("x.0", 3)
    for length in (2, 5):
        (got,) = run(program, {"x": np.zeros((length, 3), np.float32)}).values()
        np.testing.assert_array_equal(got, np.ones(length * 3))
