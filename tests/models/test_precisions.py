"""The table of precisions: it says what the exporters take, and nothing else."""

from typing import get_args

import pytest

from triptych.cli.export import ExportPrecision
from triptych.errors import UsageError
from triptych.exporters import exporter_names, make_exporter
from triptych.exporters.base import CalibrationSettings, CoreMlSettings, ExportSettings
from triptych.models.precisions import (
    PRECISION_TABLE,
    export_precisions,
    is_compressed,
    stored_words,
)
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.types import PRECISIONS, FormatName, Precision

FORMATS: tuple[FormatName, ...] = ("onnx", "openvino", "coreml")
ASKED_FOR = [name for name in PRECISIONS if not name.startswith("palette")]


def test_every_word_is_said_of_every_format() -> None:
    assert set(PRECISION_TABLE) == {"diffusers", *exporter_names()}
    for row in PRECISION_TABLE.values():
        assert set(row) == set(PRECISIONS)
        for support in row.values():
            if support.exported:
                assert support.stored
                assert support.computed
                assert support.library
                assert support.extra
                assert support.runs_on
            else:
                assert support.remark


def test_the_command_line_takes_every_word_but_palettes() -> None:
    assert set(get_args(ExportPrecision)) == set(ASKED_FOR)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("precision", ASKED_FOR)
def test_an_exporter_takes_what_the_table_says(to: FormatName, precision: Precision) -> None:
    known = export_precisions(to)
    settings = ExportSettings(
        precision=precision,
        coreml=CoreMlSettings(deployment_target="macOS15"),
        calibration=CalibrationSettings(prompts=("a cat",)),
    )
    if precision in known:
        assert make_exporter(to, settings).format == to
        return
    with pytest.raises(UsageError) as raised:
        make_exporter(to, settings)
    told = str(raised.value)
    assert f"got precision {precision!r}, want one of {', '.join(known)}. " in told
    assert PRECISION_TABLE[to][precision].remark[1:] in told


def test_what_is_compressed_is_judged_more_loosely_than_16_bits_of_weights() -> None:
    kept = [name for name in PRECISIONS if not is_compressed(name)]
    assert kept == ["fp32", "fp16", "bf16"]
    assert all(
        COMPONENT_REL_L2[name] > COMPONENT_REL_L2["fp16"]
        for name in PRECISIONS
        if is_compressed(name)
    )


def test_what_rounds_activations_stores_as_int8_does() -> None:
    assert stored_words("int8-dynamic") == stored_words("hybrid") == stored_words("int8")
    assert stored_words("int4") == ("int4", "int8")
    assert stored_words("palette4") == ("palette4",)
