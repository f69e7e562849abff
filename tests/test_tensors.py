import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import TensorMismatchError
from triptych.tensors import (
    TensorSpec,
    axis_length,
    check_tensors,
    describe,
    fixed_axes,
    shape_fits,
)
from triptych.types import TensorMap

LATENTS = TensorSpec(name="latents", dtype="float32", shape=("batch", 4, "height", "width"))
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, "8*height", "8*width"))
TIMESTEP = TensorSpec(name="timestep", dtype="float32", shape=())
IDS = TensorSpec(name="input_ids", dtype="int64", shape=("batch", 77))

lengths = st.integers(min_value=1, max_value=6)


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def mismatch(tensors: TensorMap, *specs: TensorSpec) -> TensorMismatchError:
    with pytest.raises(TensorMismatchError) as caught:
        check_tensors(tensors, specs, component="unet")
    return caught.value


@given(batch=lengths, height=lengths, width=lengths)
def test_named_axes_are_bound_to_their_lengths(batch: int, height: int, width: int) -> None:
    tensors = {"latents": zeros(batch, 4, height, width), "timestep": zeros()}
    bound = check_tensors(tensors, [LATENTS, TIMESTEP], component="unet")
    assert bound == {"batch": batch, "height": height, "width": width}


@given(batch=lengths, height=lengths, width=lengths)
def test_a_multiple_binds_its_axis_on_its_own(batch: int, height: int, width: int) -> None:
    image = zeros(batch, 3, 8 * height, 8 * width)
    bound = check_tensors({"image": image}, [IMAGE], component="vae_encoder")
    assert bound == {"batch": batch, "height": height, "width": width}


@given(batch=lengths, height=lengths, width=lengths, wrong=st.tuples(lengths, lengths, lengths))
def test_one_axis_has_one_length_across_tensors(
    batch: int, height: int, width: int, wrong: tuple[int, int, int]
) -> None:
    other_batch, other_height, other_width = wrong
    tensors = {
        "latents": zeros(batch, 4, height, width),
        "image": zeros(other_batch, 3, 8 * other_height, 8 * other_width),
    }
    if wrong == (batch, height, width):
        check_tensors(tensors, [LATENTS, IMAGE], component="vae")
    else:
        for specs in ([LATENTS, IMAGE], [IMAGE, LATENTS]):
            mismatch(tensors, *specs)


@given(height_px=st.integers(min_value=1, max_value=64))
def test_a_length_between_two_multiples_is_refused(height_px: int) -> None:
    tensors = {"image": zeros(1, 3, height_px, 8)}
    if height_px % 8:
        assert mismatch(tensors, IMAGE).tensor == "image"
    else:
        check_tensors(tensors, [IMAGE], component="vae_encoder")


def test_axes_bound_before_bind_here_and_are_not_changed() -> None:
    axes = {"batch": 2, "height": 3}
    tensors = {"latents": zeros(2, 4, 3, 5)}
    bound = check_tensors(tensors, [LATENTS], component="unet", axes=axes)
    assert bound == {"batch": 2, "height": 3, "width": 5}
    assert axes == {"batch": 2, "height": 3}
    with pytest.raises(TensorMismatchError, match=r"Here batch = 2, height = 9\."):
        check_tensors(tensors, [LATENTS], component="unet", axes={"batch": 2, "height": 9})


def test_a_missing_tensor_is_named_with_what_was_wanted() -> None:
    error = mismatch({}, IDS)
    assert (error.component, error.tensor) == ("unet", "input_ids")
    assert (error.actual, error.expected) == ("nothing", "int64 [batch, 77]")


def test_of_several_missing_tensors_the_same_is_named_each_time() -> None:
    assert mismatch({}, TIMESTEP, LATENTS, IDS).tensor == "input_ids"


def test_an_unknown_tensor_is_named_with_those_known() -> None:
    error = mismatch(
        {"timestep": zeros(), "input_ids": zeros(1, 77, dtype="int64"), "t": zeros(2)},
        TIMESTEP,
        IDS,
    )
    assert error.tensor == "t"
    assert error.actual == "float32 [2]"
    assert error.expected == "one of input_ids, timestep"


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool"])
def test_no_dtype_is_cast(dtype: str) -> None:
    error = mismatch({"timestep": zeros(dtype=dtype)}, TIMESTEP)
    assert (error.actual, error.expected) == (f"{dtype} []", "float32 []")


def test_another_byte_order_is_another_dtype() -> None:
    other = np.zeros((1, 77), np.dtype(np.int64).newbyteorder())
    assert mismatch({"input_ids": other}, IDS).tensor == "input_ids"


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 8), (1, 1, 4, 8, 8), (1, 3, 8, 8), (4, 8, 8, 1), ()],
)
def test_nothing_is_broadcast(shape: tuple[int, ...]) -> None:
    error = mismatch({"latents": zeros(*shape)}, LATENTS)
    assert error.actual == describe(zeros(*shape))
    assert error.expected == "float32 [batch, 4, height, width]"


def test_a_scalar_is_no_vector_of_one() -> None:
    assert mismatch({"timestep": zeros(1)}, TIMESTEP).actual == "float32 [1]"


# Named axes


@pytest.mark.parametrize(
    ("lengths", "fits"),
    [((2, 3, 16), True), ((2, 3, 17), False), ((2, 4, 16), False), ((2, 3), False)],
)
def test_a_shape_fits_lengths_and_binds_its_words(lengths: tuple[int, ...], fits: bool) -> None:  # noqa: FBT001
    bound = {"height": 2}
    assert shape_fits(("batch", 3, "8*height"), lengths, bound=bound) is fits
    assert bound["height"] == 2


def test_fixed_axes_are_those_that_a_graph_has_lengths_for() -> None:
    specs = [
        TensorSpec(name="image", dtype="float32", shape=("batch", 3, "8*height", "8*width")),
        TensorSpec(name="timestep", dtype="float32", shape=()),
    ]
    shapes: dict[str, tuple[int | str, ...]] = {"image": (1, 3, 64, "width_px"), "timestep": (1,)}
    assert fixed_axes(specs, shapes) == {"batch": 1, "height": 8}
    assert fixed_axes(specs, {}) == {}


def test_an_axis_has_a_length_where_its_name_is_given() -> None:
    axes = {"height": 9}
    assert axis_length(3, axes) == 3
    assert axis_length("8*height", axes) == 72
    assert axis_length("batch", axes) is None
