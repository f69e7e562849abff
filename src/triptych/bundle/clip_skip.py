"""Text encoders that give an earlier hidden state besides the one that SDXL takes.

Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, encode_prompt: hidden_states[-2] without
clip_skip, hidden_states[-(clip_skip + 2)] with it.
"""

from dataclasses import replace

from triptych.bundle.bundle import Artifact, Bundle
from triptych.bundle.layouts import Binding
from triptych.errors import UsageError
from triptych.types import ComponentName

SKIPPED_HIDDEN_STATES = "skipped_hidden_states"
"""What the earlier state is called in triptych's vocabulary; shaped as `hidden_states`."""


def with_clip_skip(bundle: Bundle, component: ComponentName, clip_skip: int) -> Artifact:
    """A text encoder's artifact whose graph is also asked for an earlier hidden state.

    Graphs made by triptych and optimum have every hidden state among their outputs.

    Args:
        bundle: holds the text encoder.
        component: which one.
        clip_skip: layers to skip before the penultimate hidden state; at least 1.

    Raises:
        UsageError: it has no such layer, or its format keeps the penultimate state alone.
        BundleError: the bundle does not have the component.
    """
    artifact = bundle.artifact(component)
    penultimate = bundle.config.text_encoders[component].num_hidden_layers - 1
    if not 1 <= clip_skip <= penultimate:
        raise UsageError(
            f"clip_skip: got {clip_skip} for {component}, want 0 to {penultimate}: it has "
            f"{penultimate + 1} layers."
        )
    if artifact.format == "coreml":
        raise UsageError(
            f"{artifact.path}: got clip_skip {clip_skip}, want 0: Core ML packages give the "
            "penultimate hidden state alone. Encode with another format, and sample here with "
            "--prompt-embeds."
        )
    states = next(spec for spec in artifact.spec.outputs if spec.name == "hidden_states")
    skipped = Binding(
        name=SKIPPED_HIDDEN_STATES, artifact_name=f"hidden_states.{penultimate - clip_skip}"
    )
    return replace(
        artifact,
        spec=replace(
            artifact.spec,
            outputs=(*artifact.spec.outputs, replace(states, name=SKIPPED_HIDDEN_STATES)),
        ),
        bindings=replace(artifact.bindings, outputs=(*artifact.bindings.outputs, skipped)),
    )
