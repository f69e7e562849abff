"""Every operator against its definition: coremltools' own inference, or NumPy where it has none."""

from collections.abc import Callable
from math import erf, sqrt

import numpy as np
import pytest
from coremltools.converters.mil import Builder

from triptych.runtimes._mil.operators.table import OPERATORS

Feed = dict[str, np.ndarray]
Compute = Callable[..., list[np.ndarray]]


def noise(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(np.float32)


X = {"x": noise(2, 3, 4)}
POSITIVE = {"x": noise(2, 3, low=0.1)}
UNIT = {"x": noise(2, 3, low=-0.9, high=0.9)}
PAIR = {"x": noise(2, 3, 4), "y": noise(3, 1)}
NEAR = {"x": np.array([[1, 2, 3]], np.int32), "y": np.array([[3], [2]], np.int32)}
IMAGE = {"x": noise(2, 4, 5, 7)}
MATRICES = {"x": noise(2, 3, 4), "y": noise(2, 4, 5)}
ATTENTION = {"query": noise(2, 3, 5, 4), "key": noise(2, 3, 6, 4), "value": noise(2, 3, 6, 2)}


def plain(operator: str, **settings: object) -> Callable[..., object]:
    """An operator on the whole feed; booleans are handed out as numbers."""

    def body(**inputs: object) -> object:
        result = getattr(Builder, operator)(**inputs, **settings)
        return Builder.cast(x=result, dtype="int32") if operator in TRUTHS else result

    return body


def listed(operator: str, **settings: object) -> Callable[..., object]:
    """An operator that takes its inputs as one list."""
    return lambda **inputs: getattr(Builder, operator)(values=list(inputs.values()), **settings)


TRUTHS = ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")


def truths(operator: str) -> Callable[..., object]:
    """A logical operator on where its inputs are positive."""

    def body(**inputs: object) -> object:
        positive = {name: Builder.greater(x=each, y=0.0) for name, each in inputs.items()}
        return Builder.cast(x=getattr(Builder, operator)(**positive), dtype="int32")

    return body


UNARY = (
    *("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "identity", "relu"),
    *("relu6", "round", "shape", "sigmoid", "sign", "sin", "sinh", "softmax", "softplus"),
    *("softsign", "square", "tan", "tanh"),
)
REDUCTIONS = (
    *("l1_norm", "l2_norm", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square"),
)

INFERRED: dict[str, tuple[Callable[..., object], Feed]] = {
    **{name: (plain(name), X) for name in UNARY},
    **{name: (plain(name), UNIT) for name in ("acos", "asin", "atanh")},
    **{name: (plain(name), POSITIVE) for name in ("log", "rsqrt", "sqrt", "inverse")},
    **{f"{name}: epsilon": (plain(name, epsilon=0.5), POSITIVE) for name in ("log", "rsqrt")},
    "inverse: epsilon": (plain("inverse", epsilon=0.5), POSITIVE),
    **{name: (plain(name), PAIR) for name in ("add", "sub", "mul", "real_div", "mod")},
    **{name: (plain(name), PAIR) for name in ("maximum", "minimum", "floor_div")},
    **{f"{name}: integers": (plain(name), NEAR) for name in ("add", "mul", "floor_div", "mod")},
    **{name: (plain(name), NEAR) for name in TRUTHS},
    **{name: (truths(name), PAIR) for name in ("logical_and", "logical_or", "logical_xor")},
    "logical_not": (truths("logical_not"), X),
    "pow": (plain("pow"), {"x": noise(2, 3, low=0.1), "y": noise(3)}),
    "cast: towards zero": (plain("cast", dtype="int32"), X),
    "cast: truth": (
        lambda x: Builder.cast(x=Builder.cast(x=x, dtype="bool"), dtype="int32"),
        {"x": np.array([0.0, 0.5, -2.0], np.float32)},
    ),
    "clip": (plain("clip", alpha=-0.5, beta=1.0), X),
    "threshold": (plain("threshold", alpha=0.5), X),
    "select": (
        lambda x, y: Builder.select(cond=Builder.greater(x=x, y=y), a=x, b=y),
        PAIR,
    ),
    **{
        f"{name}": (plain(name, alpha=0.3, beta=0.6), X)
        for name in ("clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard")
    },
    **{name: (plain(name, alpha=0.3), X) for name in ("elu", "leaky_relu", "thresholded_relu")},
    "prelu": (plain("prelu", alpha=np.array([0.1, 0.2, 0.3, 0.4], np.float32)), IMAGE),
    "softplus_parametric": (
        plain("softplus_parametric", alpha=noise(4, low=0.5), beta=noise(4, low=0.5)),
        IMAGE,
    ),
    "softmax: axis": (plain("softmax", axis=1), X),
    **{
        f"gelu: {mode}": (plain("gelu", mode=mode), X)
        for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    },
    **{f"reduce_{name}": (plain(f"reduce_{name}"), X) for name in REDUCTIONS},
    **{
        f"reduce_{name}: axes": (plain(f"reduce_{name}", axes=[-1, 0], keep_dims=keep), X)
        for name in REDUCTIONS
        if name != "log_sum_exp"  # its inference fails on several axes
        for keep in (True, False)
    },
    "reduce_mean: integers": (plain("reduce_mean", axes=[-1]), {"x": NEAR["x"]}),
    "reduce_log_sum": (plain("reduce_log_sum", axes=[1], keep_dims=True), POSITIVE),
    "reduce_argmax": (plain("reduce_argmax"), X),
    "reduce_argmax: axis": (plain("reduce_argmax", axis=1, keep_dims=True), X),
    "reduce_argmin": (plain("reduce_argmin", axis=0), X),
    "matmul": (plain("matmul"), MATRICES),
    "matmul: transposed": (
        plain("matmul", transpose_x=True, transpose_y=True),
        {"x": noise(2, 4, 3), "y": noise(1, 5, 4)},
    ),
    "linear": (plain("linear", weight=noise(5, 4), bias=noise(5)), X),
    "linear: no bias": (plain("linear", weight=noise(5, 4)), X),
    "einsum": (
        listed("einsum", equation="nchw,nwhu->nchu"),
        {"x": noise(2, 3, 4, 5), "y": noise(2, 5, 4, 6)},
    ),
    "einsum: rank 3": (
        listed("einsum", equation="chw,whr->chr"),
        {"x": noise(3, 4, 5), "y": noise(5, 4, 6)},
    ),
    "layer_norm": (plain("layer_norm", axes=[-1], gamma=noise(4), beta=noise(4)), X),
    "layer_norm: all axes": (plain("layer_norm", axes=[0, 1, 2]), X),
    "layer_norm: inner axis": (plain("layer_norm", axes=[1], epsilon=0.1), X),
    "layer_norm: two axes": (plain("layer_norm", axes=[-1, 1], gamma=noise(3, 4)), X),
    "concat": (
        listed("concat", axis=-1),
        {"x": noise(2, 3), "y": noise(2, 1)},
    ),
    "stack": (listed("stack", axis=-1), {"x": noise(2, 3), "y": noise(2, 3)}),
    "split": (plain("split", num_splits=2, axis=-1), X),
    "split: sizes": (plain("split", split_sizes=[1, 2], axis=1), X),
    "tile": (plain("tile", reps=[1, 2, 3]), X),
    "transpose": (plain("transpose", perm=[2, 0, -2]), X),
    "reverse": (plain("reverse"), X),
    "reverse: axes": (plain("reverse", axes=[-1]), X),
    "squeeze": (plain("squeeze"), {"x": noise(1, 3, 1)}),
    "squeeze: axes": (plain("squeeze", axes=[-1]), {"x": noise(1, 3, 1)}),
    "fill": (lambda x: Builder.mul(x=x, y=Builder.fill(shape=[2, 3, 4], value=1.5)), X),
    "fill_like": (lambda x: Builder.fill_like(ref_tensor=x, value=1.5), X),
    "band_part": (plain("band_part", lower=1, upper=0), {"x": noise(2, 4, 4)}),
    "band_part: unlimited": (plain("band_part", lower=-1, upper=1), {"x": noise(4, 5)}),
    "cumsum": (plain("cumsum", axis=1), X),
    "cumsum: reverse": (plain("cumsum", axis=-1, reverse=True), X),
    "gather": (
        plain("gather", axis=1),
        {"x": noise(2, 5, 3), "indices": np.array([[0, 4], [2, 2]], np.int32)},
    ),
    "gather: batch": (
        plain("gather", axis=2, batch_dims=1),
        {"x": noise(2, 3, 5), "indices": np.array([[0, 4], [2, 2]], np.int32)},
    ),
    "gather_along_axis": (
        plain("gather_along_axis", axis=1),
        {"x": noise(2, 5), "indices": np.array([[0, 4, 4], [2, 2, 1]], np.int32)},
    ),
    "pad": (plain("pad", pad=[1, 2, 0, 3], constant_val=1.5), X),
    **{
        f"pad: {mode}": (plain("pad", pad=[1, 1, 0, 2, 3, 0], mode=mode), X | {"x": noise(3, 4, 5)})
        for mode in ("reflect", "replicate")
    },
}


def normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    deviation = np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    result: np.ndarray = (x - x.mean(axis=axes, keepdims=True)) / deviation
    return result


def attended(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    scores = np.exp(np.einsum("bhle,bhse->bhls", query, key) / sqrt(query.shape[-1]))
    result: np.ndarray = scores / scores.sum(axis=-1, keepdims=True) @ value
    return result


CHANNELS = {
    "mean": noise(4),
    "variance": noise(4, low=0.5),
    "gamma": noise(4, low=1.0),
    "beta": noise(4, high=3.0),
}
M, V, G, B = (numbers.reshape(1, 4, 1, 1) for numbers in CHANNELS.values())
AFFINE = {"gamma": CHANNELS["gamma"], "beta": CHANNELS["beta"]}
FLOORS = {"x": np.array([[7, -7]], np.int32), "y": np.array([[2], [-2]], np.int32)}

WRITTEN: dict[str, tuple[Callable[..., object], Feed, Callable[..., np.ndarray]]] = {
    "silu": (plain("silu"), X, lambda x: x / (1 + np.exp(-x))),
    "gelu": (plain("gelu"), X, lambda x: x / 2 * (1 + np.vectorize(erf)(x / sqrt(2)))),
    "mod: signs": (plain("mod"), FLOORS, lambda x, y: x % y),
    "floor_div: signs": (plain("floor_div"), FLOORS, lambda x, y: x // y),
    "batch_norm": (
        plain("batch_norm", **CHANNELS, epsilon=0.1),
        IMAGE,
        lambda x: (x - M) / np.sqrt(V + 0.1) * G + B,
    ),
    "batch_norm: defaults": (
        plain("batch_norm", mean=CHANNELS["mean"], variance=CHANNELS["variance"]),
        IMAGE,
        lambda x: (x - M) / np.sqrt(V + 1e-5),
    ),
    "instance_norm": (
        plain("instance_norm", **AFFINE, epsilon=0.1),
        IMAGE,
        lambda x: normalized(x, (2, 3), 0.1) * G + B,
    ),
    "instance_norm: rank 3": (
        plain("instance_norm"),
        {"x": noise(2, 4, 5)},
        lambda x: normalized(x, (2,), 1e-5),
    ),
    "gather_nd": (
        plain("gather_nd"),
        {"x": noise(3, 4, 2), "indices": np.array([[0, 3], [2, 1]], np.int32)},
        lambda x, indices: x[indices[:, 0], indices[:, 1]],
    ),
    "gather_nd: batch": (
        plain("gather_nd", batch_dims=1),
        {"x": noise(2, 4, 3), "indices": np.array([[[0], [3]], [[2], [1]]], np.int32)},
        lambda x, indices: np.stack([x[i][indices[i, :, 0]] for i in range(2)]),
    ),
    "scaled_dot_product_attention": (plain("scaled_dot_product_attention"), ATTENTION, attended),
    "reduce_log_sum_exp: axes": (
        plain("reduce_log_sum_exp", axes=[0, 2]),
        X,
        lambda x: np.log(np.exp(x).sum(axis=(0, 2))),
    ),
    "cumsum: exclusive": (
        plain("cumsum", axis=1, exclusive=True),
        X,
        lambda x: np.cumsum(x, axis=1) - x,
    ),
    "cumsum: exclusive, reverse": (
        plain("cumsum", axis=1, exclusive=True, reverse=True),
        X,
        lambda x: np.cumsum(x[:, ::-1], axis=1)[:, ::-1] - x,
    ),
    "range_1d": (
        lambda x: Builder.range_1d(start=1, end=Builder.reduce_max(x=x), step=3),
        {"x": np.array([2, 9], np.int32)},
        lambda x: np.arange(1, x.max(), 3),
    ),
    "upsample_nearest_neighbor": (
        plain("upsample_nearest_neighbor", scale_factor_height=2, scale_factor_width=3),
        IMAGE,
        lambda x: x.repeat(2, axis=2).repeat(3, axis=3),
    ),
    "upsample_nearest_neighbor: fractional": (
        plain("upsample_nearest_neighbor", scale_factor_height=1.5, scale_factor_width=2.5),
        {"x": noise(3, 4, 2)},
        lambda x: x[:, np.arange(6) * 2 // 3][:, :, np.arange(5) * 2 // 5],
    ),
}


@pytest.mark.parametrize("name", INFERRED)
def test_gives_what_coremltools_infers(name: str, compute: Compute, define: Compute) -> None:
    body, feed = INFERRED[name]
    actual, expected = compute(body, feed), define(body, feed)
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        assert got.shape == np.shape(want)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", WRITTEN)
def test_gives_what_its_definition_says(name: str, compute: Compute) -> None:
    body, feed, definition = WRITTEN[name]
    target = "iOS18" if "attention" in name else "iOS17"
    (got,) = compute(body, feed, target=target)
    want = definition(**feed)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_no_operator_is_without_a_test() -> None:
    elsewhere = {"conv", "expand_dims", "reshape", "slice_by_index", "slice_by_size"}
    here = {name.partition(":")[0] for name in (*INFERRED, *WRITTEN)}
    assert here | elsewhere == OPERATORS.keys()
