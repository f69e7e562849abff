"""Asking a text encoder for an earlier hidden state."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.bundle.bundle import Bundle
from triptych.bundle.clip_skip import SKIPPED_HIDDEN_STATES, with_clip_skip
from triptych.bundle.layouts import Binding
from triptych.errors import BundleError, UsageError
from triptych.models.prompts import prompt_ids
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session


def test_the_state_is_bound_beside_the_usual_one(checkpoint_bundle: Bundle) -> None:
    usual = checkpoint_bundle.artifact("text_encoder_2")
    skipped = with_clip_skip(checkpoint_bundle, "text_encoder_2", 2)
    assert skipped.spec.outputs[:-1] == usual.spec.outputs
    assert skipped.bindings.outputs[:-1] == usual.bindings.outputs
    assert skipped.bindings.outputs[-1] == Binding(
        name=SKIPPED_HIDDEN_STATES, artifact_name="hidden_states.1"
    )
    assert skipped.spec.outputs[-1].shape == usual.spec.outputs[0].shape


def test_a_session_gives_both(checkpoint_bundle: Bundle, checkpoint: Path) -> None:
    feed = {"input_ids": prompt_ids(checkpoint, "text_encoder")}
    runtime = make_runtime("pytorch")
    with open_session(runtime, checkpoint_bundle, "text_encoder") as session:
        usual = session.run(feed)
    with open_session(runtime, checkpoint_bundle, "text_encoder", clip_skip=1) as session:
        both = session.run(feed)
    np.testing.assert_array_equal(both["hidden_states"], usual["hidden_states"])
    assert both.keys() - usual.keys() == {SKIPPED_HIDDEN_STATES}
    assert not np.allclose(both[SKIPPED_HIDDEN_STATES], usual["hidden_states"])


def test_core_ml_has_no_earlier_state(checkpoint_bundle: Bundle) -> None:
    packages = {
        name: replace(artifact, format="coreml")
        for name, artifact in checkpoint_bundle.artifacts.items()
    }
    bundle = replace(checkpoint_bundle, format="coreml", artifacts=packages)
    with pytest.raises(UsageError, match="Core ML packages give the penultimate hidden state"):
        with_clip_skip(bundle, "text_encoder", 1)


@pytest.mark.parametrize("clip_skip", [-1, 0, 3])
def test_a_layer_that_is_not_there(checkpoint_bundle: Bundle, clip_skip: int) -> None:
    with pytest.raises(UsageError, match=rf"clip_skip: got {clip_skip} for text_encoder, want"):
        with_clip_skip(checkpoint_bundle, "text_encoder", clip_skip)


def test_a_component_that_is_not_there(checkpoint_bundle: Bundle) -> None:
    empty = replace(checkpoint_bundle, artifacts={})
    with pytest.raises(BundleError, match="want text_encoder"):
        with_clip_skip(empty, "text_encoder", 1)
