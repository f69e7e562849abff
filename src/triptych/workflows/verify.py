"""Run an exported component against the PyTorch component it was made from."""

from triptych.bundle.bundle import Artifact
from triptych.bundle.layouts import component_bindings
from triptych.bundle.manifest import VerificationRecord
from triptych.errors import VerificationError
from triptych.models.checkpoint import Checkpoint
from triptych.models.feeds import component_cases
from triptych.models.prompts import prompt_ids
from triptych.parity.compare import compare, passes
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.checked import CheckedSession
from triptych.types import Precision


def verify_artifact(
    artifact: Artifact, checkpoint: Checkpoint, *, precision: Precision
) -> tuple[VerificationRecord, ...]:
    """Compare every output on realistic feeds with float32 PyTorch.

    Raises:
        VerificationError: an output is further from PyTorch than its precision explains.
        NonFiniteError: either side gives NaN or infinity.
        MissingDependencyError: no engine for the format is installed.
    """
    component = artifact.spec.name
    reference = Artifact(
        spec=artifact.spec,
        format="diffusers",
        path=checkpoint.component_folder(component),
        bindings=component_bindings(component, checkpoint.config, artifact_format="diffusers"),
        checkpoint=checkpoint,
    )
    engine = make_runtime(runtimes_for(artifact.format)[0])
    limit = COMPONENT_REL_L2[precision]
    records = []
    with (
        CheckedSession(make_runtime("pytorch").open(reference), reference) as expected_session,
        CheckedSession(engine.open(artifact), artifact) as actual_session,
    ):
        input_ids = prompt_ids(checkpoint.folder, component)
        for case in component_cases(component, checkpoint.config, input_ids=input_ids):
            expected = expected_session.run(case.feed)
            actual = actual_session.run(case.feed)
            for tensor, value in expected.items():
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
