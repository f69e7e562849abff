"""Run an exported component against the PyTorch component it was made from."""

from triptych.bundle.bundle import Artifact, bundle_from_checkpoint
from triptych.bundle.manifest import VerificationRecord
from triptych.errors import VerificationError
from triptych.exporters.base import ArtifactFacts
from triptych.models.checkpoint import Checkpoint
from triptych.models.feeds import component_cases
from triptych.models.prompts import prompt_ids
from triptych.parity.compare import compare, passes
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import CheckedSession
from triptych.tensors import fixed_axes
from triptych.types import Precision

LEAN_PARAMETERS = 1 << 25
"""Components of more parameters, 128 MiB in float32, are run with their weights left in the files:
engines take several times what they are."""

_CASES_AT_FULL_SIZE = 2


def verify_artifact(
    artifact: Artifact,
    checkpoint: Checkpoint,
    *,
    facts: ArtifactFacts,
    precision: Precision,
    engine_name: str,
) -> tuple[VerificationRecord, ...]:
    """Compare every output on realistic feeds with float32 PyTorch.

    Args:
        artifact: what was exported.
        checkpoint: what it was exported from.
        facts: what the artifact says about itself.
        precision: the class it is judged in.
        engine_name: the engine it is run on.

    Raises:
        VerificationError: an output is further from PyTorch than its precision explains.
        NonFiniteError: either side gives NaN or infinity.
        MissingDependencyError: no engine for the format is installed.
    """
    component = artifact.spec.name
    reference = bundle_from_checkpoint(checkpoint).artifact(component)
    lean = RuntimeSettings(low_memory=facts.num_parameters > LEAN_PARAMETERS)
    engine = make_runtime(engine_name, lean)
    limit = COMPONENT_REL_L2[precision]
    records = []
    input_ids = prompt_ids(checkpoint.folder, component)
    axes = fixed_axes(artifact.ports.inputs, {port.name: port.shape for port in facts.inputs})
    cases = list(
        component_cases(component, checkpoint.config, input_ids=input_ids, fixed_axes=axes)
    )
    if lean.low_memory and "height" in axes:  # each is a whole step of a picture, on both sides
        cases = cases[:_CASES_AT_FULL_SIZE]
    # One after the other: side by side they would take the memory of both.
    with CheckedSession(make_runtime("pytorch", lean).open(reference), reference) as session:
        expected = [session.run(case.feed) for case in cases]
    with CheckedSession(engine.open(artifact), artifact) as session:
        for case, wanted in zip(cases, expected, strict=True):
            actual = session.run(case.feed)
            for tensor, value in wanted.items():
                found = compare(actual[tensor], value, component=component, tensor=tensor)
                if not passes(found, rel_l2_limit=limit):
                    raise VerificationError(
                        f"{component} {tensor!r} on {case.name}: got relative L2 "
                        f"{found.rel_l2:.2e} from PyTorch, want at most {limit:.0e} for "
                        f"{precision}. The bundle was not written."
                    )
                records.append(
                    VerificationRecord(
                        case=case.name,
                        tensor=tensor,
                        rel_l2=found.rel_l2,
                        max_abs=found.max_abs,
                        limit=limit,
                    )
                )
    return tuple(records)
