"""The known defect is what it says: the frequencies in half precision, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from triptych.errors import UsageError
from triptych.exporters._rounded_sinusoids import round_sinusoids
from triptych.types import Array

pytestmark = pytest.mark.slow


def onnx_constants(path: Path) -> dict[str, Array]:
    graph = onnx.load(path).graph
    inner = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant"
    }
    return {**inner, **{one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}}


def openvino_constants(path: Path) -> dict[str, Array]:
    model = openvino.Core().read_model(path)
    return {
        node.get_friendly_name(): node.get_data().copy()
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
    }


def changed(before: dict[str, Array], after: dict[str, Array]) -> dict[str, Array]:
    assert before.keys() == after.keys()
    return {name: now for name, now in after.items() if not np.array_equal(before[name], now)}


@pytest.mark.parametrize("artifact_format", ["onnx", "openvino"])
def test_the_frequencies_of_both_sinusoids_and_no_weight(
    onnx_folder: Path, openvino_folder: Path, tmp_path: Path, artifact_format: str
) -> None:
    source, file, read = {
        "onnx": (onnx_folder, "model.onnx", onnx_constants),
        "openvino": (openvino_folder, "openvino_model.xml", openvino_constants),
    }[artifact_format]
    path = shutil.copytree(source / "unet", tmp_path / "unet") / file
    before, size = read(path), path.stat().st_size

    assert round_sinusoids(path, artifact_format) == 2  # type: ignore[arg-type]  # one of the two

    found = changed(before, read(path))
    assert {name.split("/")[2] for name in found} == {"time_proj", "add_time_proj"}
    for name, now in found.items():
        assert np.array_equal(now, before[name].astype(np.float16).astype(np.float32))
    assert path.stat().st_size == size


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got a file in coreml format, want onnx or openvino"):
        round_sinusoids(tmp_path / "unet.mlpackage", "coreml")
