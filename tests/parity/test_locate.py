"""Sources are told from what they spoil, in any network, and NaN never hides one."""

import json
import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.parity.compare import Comparison, compare
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.locate import (
    Finding,
    LocateReport,
    changed_by,
    most_suspicious,
    operator_limit,
    ranked,
    suspects,
)
from triptych.parity.sites import Site, make_sites
from triptych.parity.weights import ReadWeight, differing_weights
from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.graph import Graph, Operator, Region
from triptych.runtimes._taps.trace import Call, Trace
from triptych.runtimes.base import Execution
from triptych.types import PRECISIONS, Array

quick = settings(deadline=None, max_examples=60)
LIMIT = 1e-5


def site(name: str, *inputs: str) -> Site:
    operator = Operator(name=f"op_{name}", type="MatMul", inputs=inputs, outputs=(name,))
    region = Region(
        output=name,
        inputs=inputs,
        shape_inputs=(),
        operators=(operator,),
        constant_operators=(),
        constants=(),
    )
    return Site(
        value=name, tensor=0, region=region, module=name, before="", block="", modules=(name,)
    )


def found(sites: list[Site], errors: dict[str, float], limit: float = LIMIT) -> list[str]:
    return [each.value for each in suspects(sites, errors, limit=limit)]


CHAIN = [site("a", "x"), site("b", "a"), site("c", "b"), site("d", "c", "a")]


# --- suspects ------------------------------------------------------------------------------------


def test_the_first_wrong_value_is_suspected_and_not_what_it_spoils() -> None:
    assert found(CHAIN, {"a": 1e-7, "b": 0.3, "c": 0.31, "d": 0.2}) == ["b"]


def test_slow_growth_is_nobodys_fault() -> None:
    assert found(CHAIN, {"a": 4e-6, "b": 7e-6, "c": 1.2e-5, "d": 1.9e-5}) == []


def test_a_jump_behind_a_source_is_suspected_too() -> None:
    assert found(CHAIN, {"a": 1e-7, "b": 0.01, "c": 0.5, "d": 0.6}) == ["b", "c"]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_nan_is_suspected_where_it_is_made(wrong: float) -> None:
    assert found(CHAIN, {"a": 1e-7, "b": wrong, "c": math.nan, "d": math.nan}) == ["b"]
    assert found(CHAIN, {"a": math.nan, "b": 0.5, "c": 1e-7, "d": math.nan}) == ["a"]


@quick
@given(
    wrong=st.sets(st.integers(0, 19), min_size=1, max_size=3),
    parents=st.lists(st.sets(st.integers(0, 18), max_size=3), min_size=20, max_size=20),
    healthy=st.floats(1e-8, 1e-6),
)
def test_in_any_network_what_errs_on_good_inputs_is_suspected(
    wrong: set[int], parents: list[set[int]], healthy: float
) -> None:
    inputs = [sorted(parent for parent in each if parent < at) for at, each in enumerate(parents)]
    errors: dict[str, float] = {}
    for at in range(20):
        arrived = [errors[str(parent)] for parent in inputs[at]]
        errors[str(at)] = max([healthy, *arrived]) * 1.1 + (0.4 if at in wrong else 0)
    sites = [site(str(at), *map(str, inputs[at])) for at in range(20)]
    first = {
        str(at) for at in wrong if all(errors[str(parent)] <= LIMIT * 0.5 for parent in inputs[at])
    }
    assert first <= set(found(sites, errors))
    assert set(found(sites, errors)) <= set(map(str, wrong))


@quick
@given(st.dictionaries(st.sampled_from("abcd"), st.floats(), min_size=4))
def test_no_numbers_make_it_raise(errors: dict[str, float]) -> None:
    sites = suspects(CHAIN, errors, limit=LIMIT)
    assert len(most_suspicious(sites, errors, count=2)) <= 2


def test_the_greatest_jumps_are_kept_in_order() -> None:
    errors = {"a": 0.9, "b": 1e-3, "c": 5e-3, "d": 2.0}
    sites = [site("a", "x"), site("b", "y"), site("c", "b"), site("d", "a")]
    kept = most_suspicious(sites, errors, count=3)
    assert [each.value for each in kept] == ["a", "b", "c"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_operator_may_err_no_more_than_its_component(precision: str) -> None:
    limit = operator_limit(precision)  # type: ignore[arg-type]  # parametrised over all of them
    assert 0 < limit <= COMPONENT_REL_L2[precision]  # type: ignore[index]


# --- sites ---------------------------------------------------------------------------------------


def call(
    module: str, kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...], parent: int | None
) -> Call:
    is_leaf = kind in ("Linear", "ReLU")
    return Call(
        module=module, kind=kind, inputs=inputs, outputs=outputs, parent=parent, is_leaf=is_leaf
    )


TRACE = Trace(
    (
        call("", "NetModule", (0,), (6,), None),
        call("net.block", "FancyBlock2D", (0,), (6,), 0),
        call("net.block.attn", "Attention", (0,), (4,), 1),
        call("net.block.attn.to_q", "Linear", (0,), (1,), 2),
        call("net.block.attn.to_out", "Linear", (2,), (4,), 2),
        call("net.block.last", "Linear", (5,), (6,), 1),
    ),
    ((2, 3),) * 7,
    {"y": 6},
)
"""x → to_q → operators of attn → to_out → operators of block → last."""

STEPS = Graph(
    ("x",),
    ("y",),
    tuple(
        Operator(name=name, type="Any", inputs=(source,), outputs=(name,))
        for name, source in (("q", "x"), ("p", "q"), ("o", "p"), ("r", "o"), ("y", "r"))
    ),
)


def bound(value: str, tensor: int, at: int, role: Literal["output", "input"]) -> Bound:
    return Bound(value=value, tensor=tensor, call=at, role=role)


def test_sites_are_named_after_who_made_them() -> None:
    bounds = [
        bound("q", 1, 3, "output"),
        bound("p", 2, 4, "input"),
        bound("o", 4, 4, "output"),
        bound("r", 5, 5, "input"),
        bound("y", 6, 5, "output"),
    ]
    sites = make_sites(STEPS, TRACE, bounds, prefix="net.")
    assert [(each.module, each.before) for each in sites] == [
        ("block.attn.to_q", ""),
        ("block.attn", "block.attn.to_out"),
        ("block.attn.to_out", ""),
        ("block", "block.last"),
        ("block.last", ""),
    ]
    assert {each.block for each in sites} == {"block"}


def test_what_was_given_is_the_result_of_a_module_that_nothing_else_shows() -> None:
    bounds = [bound("q", 1, 3, "output"), bound("y", 6, 0, "input")]
    sites = make_sites(STEPS, TRACE, bounds, prefix="net.")
    assert [(each.module, each.before) for each in sites][-1] == ("block.last", "")
    assert [each.name for each in sites[-1].region.operators] == ["p", "o", "r", "y"]


def test_an_operator_behind_a_module_is_not_the_modules() -> None:
    """Planted between to_q and what reads it, where the reference has nothing."""
    bounds = [bound("q", 1, 3, "output"), bound("p", 1, 4, "input")]
    planted = make_sites(STEPS, TRACE, bounds, prefix="net.")[-1]
    assert (planted.module, planted.before) == ("block.attn", "block.attn.to_out")


def test_what_a_module_hands_down_was_made_outside_of_it() -> None:
    """Block and attn only pass on what to_q is given."""
    (outer,) = make_sites(STEPS, TRACE, [bound("q", 0, 3, "input")], prefix="net.")
    assert (outer.module, outer.before, outer.block) == ("", "", "")


# --- weights -------------------------------------------------------------------------------------


PARAMETERS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "a.bias": np.ones(4, np.float32),
    "n.weight": np.full(4, 2, np.float32),
}


def read(values: Array, known_as: str | None = None, parameter: str = "") -> ReadWeight:
    return ReadWeight(operator="op", parameter=parameter, known_as=known_as, values=values)


def differing(*weights: ReadWeight, limit: float = LIMIT) -> list[tuple[str, tuple[int, ...]]]:
    differences = differing_weights(
        weights,
        list(PARAMETERS),
        load=PARAMETERS.__getitem__,
        component="unet",
        limit=limit,
    )
    return [(each.parameter, each.comparison.max_abs_index) for each in differences]


def test_weights_are_compared_in_any_layout_and_dtype() -> None:
    weight = PARAMETERS["a.weight"]
    for values in (weight, weight.T, weight[:, :, None, None], weight.astype(np.float16)):
        assert differing(read(values, "a.weight")) == []
        changed = values.copy()
        changed[changed == 7] = 70
        assert differing(read(changed, "a.weight"), limit=1e-3) == [("a.weight", (2, 1))]


def test_a_weight_without_a_name_is_the_nearest_of_its_shape() -> None:
    assert differing(read(np.array([2, 2, 9, 2], np.float32))) == [("n.weight", (2,))]
    assert differing(read(np.array([1, 9, 1, 1], np.float32), parameter="beta")) == [
        ("a.bias", (1,))
    ]
    assert differing(read(np.zeros(4, np.float32), parameter="mean")) == []
    assert differing(read(np.zeros(5, np.float32))) == []


def test_a_name_that_is_taken_is_no_candidate() -> None:
    near = read(np.array([1, 1, 1, 1.5], np.float32))
    assert differing(read(PARAMETERS["a.bias"], "a.bias"), near) == [("n.weight", (0,))]


def test_nan_in_a_weight_differs() -> None:
    spoilt = PARAMETERS["a.weight"].copy()
    spoilt[1, 2] = np.nan
    assert differing(read(spoilt, "a.weight")) == [("a.weight", (1, 2))]


# --- the report ----------------------------------------------------------------------------------


def comparison(error: float, name: str = "value") -> Comparison:
    expected = np.ones(4, np.float32)
    return compare(expected * np.float32(1 + error), expected, component="unet", tensor=name)


def finding(local: float) -> Finding:
    measured = comparison(local)
    return Finding(
        site=site(f"{local}", "x"),
        operator="op",
        operator_type="MatMul",
        arrived=None,
        output=measured,
        local=measured,
        propagated=0.0,
        weights=(),
    )


def report(
    *, findings: tuple[Finding, ...] = (), output: float = 0.0, tapping: float = 0.0
) -> LocateReport:
    return LocateReport(
        component="unet",
        case="a case",
        execution=Execution(runtime="any", version="1", device="cpu", precision="fp32"),
        precision="fp32",
        limit=1e-5,
        operator_limit=2.5e-6,
        num_sites=1,
        num_operators=1,
        outputs=(comparison(output),),
        tapping=tapping,
        findings=findings,
        num_unexamined=0,
    )


def test_the_first_stays_first_and_the_others_follow_by_their_error() -> None:
    order = ranked([finding(0.1), finding(0.2), finding(math.nan), finding(0.5)])
    assert [each.site.value for each in order] == ["0.1", "nan", "0.5", "0.2"]
    assert ranked([]) == ()


def test_verdicts() -> None:
    assert report().verdict == "passed"
    assert report(findings=(finding(0.1),), output=0.1).problems == ()
    assert report(findings=(finding(0.1),)).verdict == "failed"
    assert "step by step" in report(output=0.1).problems[0]
    assert "step by step" in report(output=math.nan).problems[0]
    assert report(output=math.nan).verdict == "failed"
    for changed in (1e-3, math.nan):
        assert "tapping changed the result" in report(tapping=changed).problems[0]
        assert report(tapping=changed).verdict == "failed"


def test_how_far_taps_change_an_output() -> None:
    plain = np.array([1, np.nan, 3], np.float32)
    assert changed_by(plain.copy(), plain) == 0
    assert changed_by(np.array([1, np.nan, 4], np.float32), plain) == pytest.approx(10**-0.5)
    assert math.isnan(changed_by(np.array([1, 2, 3], np.float32), plain))
    assert math.isnan(changed_by(np.array([np.nan, np.nan, 3], np.float32), plain))


def test_the_document_is_strict_json() -> None:
    whole = report(findings=(finding(math.nan),), output=math.nan, tapping=math.nan)
    document = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert document["tapping"] == "nan"
    assert document["findings"][0]["local"]["rel_l2"] == "nan"
    assert document["findings"][0]["operators"] == [{"name": "op_nan", "type": "MatMul"}]
