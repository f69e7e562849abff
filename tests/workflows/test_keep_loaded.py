"""Components are closed before the next is opened, or kept to the end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.onnxruntime import OnnxRuntimeSession
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import ComponentName
from triptych.workflows.sample import sample
from triptych.workflows.sample_request import SampleRequest


@pytest.fixture
def num_open(monkeypatch: pytest.MonkeyPatch, opened: list[ComponentName]) -> list[int]:
    """After each close, how many sessions have been opened and not closed."""
    counts: list[int] = []
    really = OnnxRuntimeSession.close

    def told(self: OnnxRuntimeSession) -> None:
        really(self)
        counts.append(len(opened) - len(counts) - 1)

    monkeypatch.setattr(OnnxRuntimeSession, "close", told)
    return counts


def test_kept_components_are_opened_once_and_closed_at_the_end(
    onnx_folder: Path, tmp_path: Path, opened: list[ComponentName], num_open: list[int]
) -> None:
    request = SampleRequest(
        bundle=onnx_folder,
        output=tmp_path / "closed",
        settings=Settings(
            prompts=Prompts(prompt=("a cat",)), num_inference_steps=2, height_px=64, width_px=64
        ),
        previews="vae",
        runtime_settings=RuntimeSettings(),
    )
    sample(request)
    encoders: list[ComponentName] = ["text_encoder", "text_encoder_2"]
    assert opened == [*encoders, "unet", "vae_decoder", "vae_decoder"]
    assert num_open == [1, 0, 0, 0, 0]
    del opened[:], num_open[:]
    sample(replace(request, output=tmp_path / "kept", keep_loaded=True))
    assert opened == [*encoders, "unet", "vae_decoder"]
    assert num_open == [3, 2, 1, 0]
    one, other = (load_file(tmp_path / name / "latents.safetensors") for name in ("closed", "kept"))
    np.testing.assert_array_equal(one["final"], other["final"])
