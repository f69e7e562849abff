"""Sessions that stay open."""

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import BackendError
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, Session
from triptych.runtimes.checked import open_session
from triptych.runtimes.kept_open import KeptOpen, kept_open
from triptych.sampling.pipeline import denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that ONNX Runtime opens and closes, in order."""
    engine = type(make_runtime("onnxruntime"))
    seen: list[str] = []
    truly_open = engine.open

    def open_and_tell(self: Runtime, artifact: Artifact) -> Session:
        seen.append(artifact.spec.name)
        return truly_open(self, artifact)

    monkeypatch.setattr(engine, "open", open_and_tell)
    return seen


def test_each_component_is_opened_once(onnx_bundle: Bundle, opened: list[str]) -> None:
    settings = Settings(
        prompts=Prompts(prompt=("a cat",)), num_inference_steps=1, height_px=64, width_px=64
    )
    finals = []
    with kept_open(make_runtime("onnxruntime")) as runtime:
        for _ in range(2):
            prepared = prepare(onnx_bundle, runtime, settings)
            finals += [event.latents.copy() for event in denoise(onnx_bundle, runtime, prepared)]
    assert opened == ["text_encoder", "text_encoder_2", "unet"]
    np.testing.assert_array_equal(finals[0], finals[1])


def test_another_output_is_another_session(onnx_bundle: Bundle, opened: list[str]) -> None:
    with kept_open(make_runtime("onnxruntime")) as runtime:
        for clip_skip in (0, 1, 0):
            with open_session(runtime, onnx_bundle, "text_encoder", clip_skip=clip_skip):
                pass
    assert opened == ["text_encoder"] * 2


def test_all_are_closed_at_the_end(onnx_bundle: Bundle) -> None:
    with kept_open(make_runtime("onnxruntime")) as runtime:
        lent = runtime.open(onnx_bundle.artifact("vae_decoder"))
        lent.close()
        feed = {"latent_sample": np.zeros((1, 4, 8, 8), np.float32)}
        assert lent.run(feed, ("sample",))["sample"].shape == (1, 3, 64, 64)
    with pytest.raises((BackendError, AttributeError, RuntimeError)):
        lent.run(feed, ("sample",))


def test_it_is_its_engine_in_all_else() -> None:
    engine = make_runtime("onnxruntime")
    with kept_open(engine) as runtime:
        assert isinstance(runtime, KeptOpen)
        assert (runtime.name, runtime.formats) == (engine.name, engine.formats)
        assert runtime.probe() == engine.probe()
