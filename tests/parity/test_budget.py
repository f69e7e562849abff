"""Accepted limits: written for review, read back, and never for what nobody should accept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BrokenInputError, OutputError
from triptych.parity.budget import (
    HEADROOM,
    Budget,
    BudgetEntry,
    accepted,
    read_budget,
    write_budget,
)
from triptych.parity.compare import compare
from triptych.parity.fingerprint import take_fingerprint
from triptych.parity.report import Row, with_comparison

MACHINE = take_fingerprint()


def row(rel_l2: float, *, tensor: str = "noise_pred") -> Row:
    expected = np.ones(4, np.float32)
    found = compare(expected, expected, component="unet", tensor=tensor)
    bare = Row(
        stage="component",
        component="unet",
        case="",
        precision="int8",
        limit=1.0,
        limit_source="constant",
    )
    return replace(with_comparison(bare, found), rel_l2=rel_l2)


def test_the_worst_of_each_kind_is_accepted_with_headroom() -> None:
    rows = [row(1e-3), row(3e-3), row(2e-3), row(5e-4, tensor="other")]
    budget = accepted(Budget(), {"openvino": rows}, MACHINE)
    first, other = budget.entries
    assert (first.tensor, first.measured, first.limit) == ("noise_pred", 3e-3, 4.5e-3)
    assert (other.tensor, other.limit) == ("other", 7.5e-4)
    assert first.runtime == "openvino"
    assert first.machine.startswith(MACHINE.summary)
    assert f"openvino {MACHINE.packages['openvino']}" in first.machine
    assert len(first.accepted) == len("2026-01-01")
    assert budget.limit_of(row(0.0), runtime="openvino") == 4.5e-3
    assert budget.limit_of(row(0.0), runtime="onnxruntime") is None


def test_what_no_budget_excuses_is_not_accepted() -> None:
    rows = [
        replace(row(0.5), limit_source="floor"),
        replace(row(float("nan")), finite_actual=False),
        Row(stage="precision", component="unet", case="", precision="int8", verdict="failed"),
    ]
    assert accepted(Budget(), {"openvino": rows}, MACHINE) == Budget()


def test_entries_about_other_rows_stay_and_the_same_are_replaced() -> None:
    before = accepted(Budget(), {"openvino": [row(1e-3)], "onnxruntime": [row(1e-4)]}, MACHINE)
    after = accepted(before, {"openvino": [row(2e-3)]}, MACHINE)
    assert [(entry.runtime, entry.measured) for entry in after.entries] == [
        ("onnxruntime", 1e-4),
        ("openvino", 2e-3),
    ]


@given(
    st.lists(
        st.builds(
            BudgetEntry,
            runtime=st.text(max_size=8),
            precision=st.sampled_from(["fp32", "int8"]),
            stage=st.sampled_from(["component", "image"]),
            component=st.sampled_from(["unet", "vae_decoder"]),
            tensor=st.text(max_size=8),
            measured=st.floats(min_value=0, max_value=1e6),
            limit=st.floats(min_value=0, max_value=1e6),
            accepted=st.text(max_size=8),
            machine=st.text(max_size=8),
        ),
        max_size=5,
    )
)
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, entries: list[BudgetEntry]
) -> None:
    path = tmp_path_factory.mktemp("budget") / "deep" / "budget.json"
    budget = Budget(entries=tuple(entries))
    write_budget(budget, path)
    assert read_budget(path) == budget
    assert [found.name for found in path.parent.iterdir()] == ["budget.json"]


def test_a_measured_value_passes_what_was_accepted_for_it() -> None:
    for measured in (1e-3, 1.2345e-6, 9.999e-2):
        budget = accepted(Budget(), {"openvino": [row(measured)]}, MACHINE)
        limit = budget.limit_of(row(0.0), runtime="openvino")
        assert limit is not None
        assert measured < limit <= measured * HEADROOM * 1.01


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "want a budget that check --accept wrote"),
        ("[]", "want a budget that check --accept wrote"),
        ('{"entries": [{"runtime": 1}]}', "want a budget that check --accept wrote"),
        ('{"schema_version": 99}', "Upgrade triptych"),
    ],
)
def test_files_that_are_no_budget(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "budget.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BrokenInputError, match=told):
        read_budget(path)
    with pytest.raises(BrokenInputError, match="No such file"):
        read_budget(tmp_path / "none.json")


def test_a_budget_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "budget.json"
    target.mkdir()
    with pytest.raises(OutputError, match="could not write it"):
        write_budget(Budget(), target)
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_is_stable_and_made_for_reviews(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    write_budget(accepted(Budget(), {"openvino": [row(1e-3)]}, MACHINE), path)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '      "limit": 0.0015,\n' in text
    assert json.loads(text)["schema_version"] == 1
