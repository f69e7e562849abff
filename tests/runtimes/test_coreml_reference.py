"""The interpreter as a runtime: chunks, numeric modes, the first operator that goes wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle, make_artifact
from triptych.errors import BackendError, NonFiniteError, UsageError
from triptych.exporters._coreml_convert import convert_module
from triptych.exporters._coreml_packages import save_packages
from triptych.exporters.base import ExportSettings
from triptych.exporters.coreml import built_ports
from triptych.mil.reading import read_program
from triptych.mil.weights import Weight
from triptych.models.apple_modules import apple_module
from triptych.models.checkpoint import open_checkpoint
from triptych.models.feeds import component_cases
from triptych.models.modules import load_module
from triptych.models.prompts import prompt_ids
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.record import default_settings, record
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.types import Array, TensorMap

REFERENCE = "coreml-reference"


def run_unet(artifact: Artifact, feed: TensorMap) -> Array:
    with CheckedSession(make_runtime(REFERENCE).open(artifact), artifact) as session:
        return session.run(feed)["noise_pred"]


@pytest.fixture(scope="module")
def unets(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """One float16 conversion of the U-Net, written whole and in two."""
    import torch

    opened = open_checkpoint(checkpoint)
    settings = ExportSettings(precision="fp16")
    ports = built_ports("unet", opened.config, settings)
    module = load_module(opened, "unet", dtype=torch.float32)
    model = convert_module(
        apple_module(module, "unet", attention="original"),
        inputs=ports.inputs,
        outputs=ports.outputs,
        half=True,
        deployment_target="macOS13",
    )
    folder = tmp_path_factory.mktemp("unets")
    paths = {
        "whole": (folder / "m_unet.mlpackage",),
        "cut": (folder / "m_unet_chunk1.mlpackage", folder / "m_unet_chunk2.mlpackage"),
    }
    for packages in paths.values():
        save_packages(model, packages)
    return {
        name: make_artifact("unet", opened.config, paths=packages, artifact_format="coreml")
        for name, packages in paths.items()
    }


@pytest.mark.slow
def test_two_chunks_are_the_whole_bit_for_bit(
    unets: dict[str, Artifact], checkpoint_bundle: Bundle
) -> None:
    built = {"batch": 2, "height": 16, "width": 16}
    ids = np.zeros((1, 77), np.int64)
    for case in component_cases("unet", checkpoint_bundle.config, input_ids=ids, fixed_axes=built):
        whole, cut = (run_unet(unets[name], case.feed) for name in ("whole", "cut"))
        assert np.array_equal(whole, cut), case.name


@pytest.mark.slow
def test_modes_differ_as_they_say(unets: dict[str, Artifact]) -> None:
    declared = make_runtime(REFERENCE).open(unets["whole"])
    widened = make_runtime(REFERENCE, RuntimeSettings(precision="fp32")).open(unets["whole"])
    assert {port.dtype for port in declared.inputs} == {"float16", "float32"}
    assert {port.dtype for port in widened.inputs} == {"float32"}
    assert (declared.execution.precision, widened.execution.precision) == ("fp16", "fp32")
    assert declared.execution.declared_precision == "fp16"
    assert widened.execution.details["program_declares"] == "fp16"
    for session in (declared, widened):
        assert "not Apple's runtime" in session.execution.details["certifies"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (RuntimeSettings(device="gpu"), BackendError, "got no device 'gpu', want cpu"),
        (RuntimeSettings(precision="bf16"), UsageError, "got --precision bf16, want fp32"),
        (RuntimeSettings(cache_dir=Path("x")), UsageError, "got --cache-dir"),
    ],
)
def test_what_it_cannot_do_is_refused(
    settings: RuntimeSettings, error: type[Exception], told: str, coreml_bundle: Bundle
) -> None:
    with pytest.raises(error, match=told):
        make_runtime(REFERENCE, settings).open(coreml_bundle.artifact("text_encoder"))


# A planted NaN


def spoil(package: Path, wanted: Callable[[str], bool]) -> str:
    """Write NaN into the first weight whose name fits; the name of what reads it."""
    program = read_program(package)
    name, weight = next(
        (name, constant)
        for name, constant in program.constants.items()
        if isinstance(constant, Weight) and wanted(name)
    )
    path = next(package.rglob("weight.bin"))
    content = bytearray(path.read_bytes())
    start = content.index(weight.raw.tobytes())
    content[start : start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    return next(
        step.name
        for step in program.operations
        if any(name in names for names in step.inputs.values())
    )


@pytest.fixture
def spoilt(coreml_bundle: Bundle, tmp_path: Path) -> tuple[Bundle, str]:
    """The Core ML bundle with a NaN in the U-Net's first convolution, and its name."""
    artifact = coreml_bundle.artifact("unet")
    copy = tmp_path / artifact.path.name
    shutil.copytree(artifact.path, copy)
    operator = spoil(copy, lambda name: "conv_in_weight" in name)
    changed = replace(artifact, path=copy)
    artifacts = {**coreml_bundle.artifacts, "unet": changed}
    return replace(coreml_bundle, artifacts=artifacts), operator


@pytest.mark.slow
def test_a_planted_nan_is_told_at_the_first_operator_that_shows_it(
    spoilt: tuple[Bundle, str], checkpoint_bundle: Bundle
) -> None:
    bundle, operator = spoilt
    ids = prompt_ids(checkpoint_bundle.folder, "text_encoder")
    axes = bundle.artifact("unet").fixed_axes
    case = next(component_cases("unet", bundle.config, input_ids=ids, fixed_axes=axes))
    with (
        open_session(make_runtime(REFERENCE), bundle, "unet") as session,
        pytest.raises(NonFiniteError, match=operator),
    ):
        session.run(case.feed)


@pytest.mark.slow
def test_a_check_names_the_operator_too(
    spoilt: tuple[Bundle, str], checkpoint_bundle: Bundle
) -> None:
    bundle, operator = spoilt
    recording = record(
        checkpoint_bundle,
        make_runtime("pytorch"),
        default_settings(checkpoint_bundle.config, num_inference_steps=1),
        report=lambda _: None,
    )
    candidate = Candidate(
        bundle=bundle,
        runtime=make_runtime(REFERENCE),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
    )
    report = check(recording, candidate, report=lambda _: None).report
    failed = [row for row in report.rows if row.verdict == "failed"]
    assert report.verdict == "failed"
    assert {row.component for row in failed} == {"unet"}
    assert all(operator in row.reason for row in failed)
