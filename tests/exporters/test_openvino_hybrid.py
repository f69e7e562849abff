"""Hybrid quantisation: what is recorded, what is rounded by it, and what a wrong record does."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import openvino
import pytest
from safetensors.numpy import load_file, save_file

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BrokenInputError, UsageError, VerificationError
from triptych.exporters import make_exporter
from triptych.exporters.base import CalibrationSettings, ExportSettings
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session
from triptych.types import FormatName
from triptych.workflows import calibration as workflow
from triptych.workflows import export_process
from triptych.workflows.calibration import num_feeds, read_calibration, record_feeds
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.export_process import ExportJob, export_component

CALIBRATION = CalibrationSettings(prompts=("a cat", "a red car in the snow"), num_inference_steps=3)
HYBRID = ExportSettings(precision="hybrid", calibration=CALIBRATION)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("hybrid"),
        formats=["openvino"],
        components=["text_encoder", "unet"],
        settings=HYBRID,
        measure_steps=0,
    )
    return open_bundle(export_bundles(request)["openvino"])


def model_of(bundle: Bundle) -> "openvino.Model":
    return openvino.Core().read_model(bundle.artifact("unet").path)


# --- what is recorded ----------------------------------------------------------------------------


def test_prompts_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert read_calibration(file, num_inference_steps=7) == CalibrationSettings(
        prompts=("a cat", "a dog"), num_inference_steps=7
    )
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match="got no prompt"):
        read_calibration(file, num_inference_steps=7)
    with pytest.raises(BrokenInputError, match="want a text file of prompts"):
        read_calibration(tmp_path / "absent.txt", num_inference_steps=7)


@pytest.mark.slow
@pytest.mark.parametrize(("at_most", "found"), [(200, [0, 1, 2, 3, 4, 5]), (3, [0, 2, 4])])
def test_inputs_are_those_of_real_runs_and_not_too_many(
    at_most: int,
    found: list[int],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workflow, "MAX_FEEDS", at_most)
    opened = open_checkpoint(checkpoint)
    record_feeds(opened, CALIBRATION, tmp_path, to="openvino")
    files = sorted(tmp_path.iterdir())
    assert [int(file.stem) for file in files] == found
    assert num_feeds(CALIBRATION) == len(files)
    feeds = [load_file(file) for file in files]
    edge = opened.config.sample_size
    assert all(feed["sample"].shape == (2, 4, edge, edge) for feed in feeds)  # at its own size
    if at_most == 200:
        timesteps = [float(feed["timestep"]) for feed in feeds]
        assert all(one > other for one, other in pairwise(timesteps[:3]))
        assert timesteps[:3] == timesteps[3:]
        first, second = feeds[0], feeds[3]  # two prompts, two noises
        assert not np.array_equal(first["encoder_hidden_states"], second["encoder_hidden_states"])
        assert not np.array_equal(first["sample"], second["sample"])


# --- what is made of it --------------------------------------------------------------------------


@pytest.mark.slow
def test_convolutions_are_computed_in_int8(bundle: Bundle) -> None:
    with open_session(make_runtime("openvino"), bundle, "unet") as unet:
        execution = unet.execution
    assert (execution.precision, execution.declared_precision) == ("hybrid", "hybrid")
    assert "hybrid" in execution.details["nodes"]
    assert execution.details["dynamic_quantization_group_size"] == "0"
    with open_session(make_runtime("openvino"), bundle, "text_encoder") as encoder:
        assert encoder.execution.precision == "fp32"


@pytest.mark.slow
def test_every_weight_is_counted_and_said_to_be_of_8_bits(
    bundle: Bundle, openvino_bundle: Bundle
) -> None:
    record, whole = (one.artifact("unet").record for one in (bundle, openvino_bundle))
    assert record is not None
    assert whole is not None
    assert record.precision == "hybrid"
    assert record.num_parameters == whole.num_parameters
    assert set(record.weight_dtypes) == {"float32", "int8", "uint8"}
    assert record.weight_dtypes["float32"] < 0.05 * record.num_parameters
    assert bundle.manifest is not None
    assert bundle.manifest.settings == {
        "calibration_prompts": 2,
        "calibration_steps": 3,
        "calibration_feeds": 6,
    }
    text_encoder = bundle.artifact("text_encoder").record
    assert text_encoder is not None
    assert text_encoder.precision == "int8"


@pytest.mark.slow
def test_nothing_on_the_way_to_a_sinusoid_is_rounded(bundle: Bundle) -> None:
    model = model_of(bundle)
    rounded = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(rounded) > 50
    for node in behind([one for one in model.get_ops() if one.get_type_name() in ("Sin", "Cos")]):
        assert node.get_type_name() != "FakeQuantize"


def behind(nodes: "list[openvino.Node]") -> "Iterator[openvino.Node]":
    while nodes:
        node = nodes.pop()
        yield node
        nodes += [source.get_node() for source in node.input_values()]


# --- what is refused -----------------------------------------------------------------------------


def test_hybrid_needs_prompts() -> None:
    with pytest.raises(UsageError, match="--calibrate FILE"):
        make_exporter("openvino", ExportSettings(precision="hybrid"))


def test_prompts_are_for_hybrid_alone(checkpoint: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path,
        formats=["openvino"],
        settings=ExportSettings(precision="int8", calibration=CALIBRATION),
    )
    with pytest.raises(UsageError, match="with precision 'int8', want hybrid"):
        export_bundles(request)


@pytest.mark.slow
def test_a_calibration_that_saw_too_little_is_found_before_the_bundle_is_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents a hundred times too small: what is larger in a run is cut off."""

    def shrunk(
        checkpoint: Checkpoint, calibration: CalibrationSettings, folder: Path, *, to: FormatName
    ) -> None:
        record_feeds(checkpoint, calibration, folder, to=to)
        for file in folder.iterdir():
            feed = load_file(file)
            save_file({**feed, "sample": feed["sample"] / np.float32(100)}, file)

    monkeypatch.setattr(export_process, "record_feeds", shrunk)
    (tmp_path / "unet").mkdir()
    job = ExportJob(
        checkpoint=str(checkpoint),
        variant=None,
        component="unet",
        format="openvino",
        settings=HYBRID,
        bundle=str(tmp_path),
    )
    with pytest.raises(VerificationError, match="want at most 5e-01 for hybrid"):
        export_component(job, report=lambda *_: None)
