"""Several engines as one."""

from dataclasses import replace

import pytest

from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import UsageError
from triptych.runtimes import make_runtime, runtime_names
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import open_session
from triptych.runtimes.mixed import Mixed
from triptych.types import ComponentName

ONE_THREAD = RuntimeSettings(num_threads=1)


@pytest.mark.slow
def test_each_component_runs_on_its_own_engine(
    onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    mixed = Mixed(
        engines={
            "text_encoder": make_runtime("pytorch", ONE_THREAD),
            "vae_decoder": make_runtime("onnxruntime", ONE_THREAD),
            "unet": make_runtime("openvino", ONE_THREAD),
        }
    )
    artifacts: dict[ComponentName, Artifact] = {
        "text_encoder": checkpoint_bundle.artifact("text_encoder"),
        "vae_decoder": onnx_bundle.artifact("vae_decoder"),
        "unet": onnx_bundle.artifact("unet"),
    }
    bundle = replace(onnx_bundle, artifacts=artifacts)
    ran = {}
    for name in mixed.engines:
        with open_session(mixed, bundle, name) as session:
            ran[name] = session.execution.runtime
    assert ran == {
        "text_encoder": "pytorch",
        "vae_decoder": "onnxruntime",
        "unet": "openvino",
    }


def test_a_component_without_an_engine_is_refused(onnx_bundle: Bundle) -> None:
    mixed = Mixed(engines={"unet": make_runtime("onnxruntime")})
    with pytest.raises(UsageError, match="got vae_decoder, want one of unet"):
        mixed.open(onnx_bundle.artifact("vae_decoder"))


def test_it_reads_what_any_of_them_reads_and_has_what_all_of_them_have() -> None:
    mixed = Mixed(
        engines={"unet": make_runtime("openvino"), "vae_decoder": make_runtime("pytorch")}
    )
    assert mixed.formats == ("openvino", "onnx", "diffusers")
    probe = mixed.probe()
    assert probe.installed
    assert {"openvino", "torch"} <= set(probe.versions)


def test_it_is_no_engine_to_choose() -> None:
    assert "mixed" not in runtime_names()
