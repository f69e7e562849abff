"""Each network alone: what it declares, what it ran in, whether it is finite, how far it is."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from triptych.bundle.bundle import Artifact
from triptych.errors import BackendError, NonFiniteError
from triptych.models.precisions import stored_words
from triptych.parity.candidate import Candidate
from triptych.parity.compare import compare
from triptych.parity.preconditions import array_sha256
from triptych.parity.recording import RecordedCase, Recording
from triptych.parity.report import Branch, Row, Stage, with_comparison
from triptych.runtimes.base import Execution
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.tensors import check_tensors
from triptych.types import Array, ComponentName, TensorMap

_HALVES: tuple[Branch, ...] = ("unconditional", "conditional")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentEvidence:
    """What was seen of one network.

    Attributes:
        rows: not judged yet where they have numbers.
        execution: what it ran on; None where it did not.
        self_difference: relative L2 between two runs of one feed; 0 for most engines.
    """

    rows: tuple[Row, ...]
    execution: Execution | None = None
    self_difference: float = 0.0


def component_evidence(
    recording: Recording, candidate: Candidate, component: ComponentName
) -> ComponentEvidence:
    """Look at one network: its border, its precision, and its outputs on the recorded feeds.

    Raises:
        BundleError: its artifact cannot be read.
        BackendError: the engine is missing, or cannot open it.
    """
    about = Row(
        stage="component",
        component=component,
        case="",
        precision=candidate.precisions.get(component, "fp32"),
    )
    contract = tuple(contract_rows(about, candidate))
    if component not in candidate.bundle.artifacts:
        return ComponentEvidence(rows=(*contract, _missing(about, "the bundle does not have it")))
    artifact = candidate.bundle.artifact(component)
    recorded = [case for case in recording.cases if case.component == component]
    cases = [case for case in recorded if takes(artifact, case)]
    if not cases:
        reason = "the reference has no feed of its size" if recorded else "the reference lacks it"
        return ComponentEvidence(rows=(*contract, _missing(about, reason)))
    with open_session(candidate.runtime, candidate.bundle, component) as session:
        about = replace(about, ran=session.execution.precision)
        measured = _Measured()
        rows = tuple(_case_rows(session, cases, about, measured))
        return ComponentEvidence(
            rows=(
                *contract,
                *_precision_rows(about, candidate, session.execution),
                _finiteness_row(about, measured.not_finite),
                *rows,
            ),
            execution=session.execution,
            self_difference=measured.self_difference,
        )


def contract_rows(about: Row, candidate: Candidate) -> Iterator[Row]:
    """Whether the format's own clients could run a component; one row for each obstacle."""
    problems = candidate.problems.get(about.component)
    if problems is None:
        return
    for problem in problems or ("",):
        yield replace(
            about,
            stage="contract",
            case=problem or "names, dtypes, shapes",
            verdict="failed" if problem else "passed",
            reason=problem,
        )


@final
@dataclass(slots=True)
class _Measured:
    """What is learnt beside the rows, while they are made."""

    not_finite: list[tuple[str, str]] = field(default_factory=list)
    self_difference: float = 0.0


def _missing(about: Row, reason: str) -> Row:
    return replace(about, verdict="not_run", reason=reason)


def takes(artifact: Artifact, case: RecordedCase) -> bool:
    """Whether a graph of fixed shapes can run a feed."""
    fixed = artifact.fixed_axes
    if not fixed:
        return True
    axes = check_tensors(case.feed, artifact.spec.inputs, component=artifact.spec.name)
    return all(
        axes[name] % length == 0 if name == "batch" else axes[name] == length
        for name, length in fixed.items()
    )


def _precision_rows(about: Row, candidate: Candidate, execution: Execution) -> Iterator[Row]:
    """Whether weights are what was declared, and the engine computed in what it was to."""
    artifact = candidate.bundle.artifact(about.component)
    stored = candidate.stored.get(about.component)
    if stored is not None and artifact.record is not None:
        declared = artifact.record.precision
        yield _agreement(
            about,
            f"weights declared {declared}, stored {stored}",
            stored in stored_words(declared),
        )
    if execution.declared_precision is not None:
        declared, ran = execution.declared_precision, execution.precision
        yield _agreement(about, f"declared {declared}, ran {ran}", ran == declared)


def _agreement(about: Row, case: str, is_so: bool) -> Row:  # noqa: FBT001  a fact, not a switch
    return replace(
        about,
        stage="precision",
        case=case,
        verdict="passed" if is_so else "failed",
        reason="" if is_so else case,
    )


def _finiteness_row(about: Row, found: Sequence[tuple[str, str]]) -> Row:
    if not found:
        return replace(about, stage="finiteness", case="every feed", verdict="passed")
    case, reason = found[0]
    others = f" And on {len(found) - 1} other feeds." if len(found) > 1 else ""
    return replace(
        about, stage="finiteness", case=case, verdict="failed", reason=f"{reason}{others}"
    )


def _case_rows(
    session: CheckedSession, cases: Sequence[RecordedCase], about: Row, measured: _Measured
) -> Iterator[Row]:
    for number, case in enumerate(cases):
        try:
            outputs = session.run(case.feed)
            again = session.run(case.feed) if number == 0 else None
        except NonFiniteError as error:
            measured.not_finite.append((case.name, str(error)))
            continue
        except BackendError as error:
            yield replace(about, case=case.name, verdict="failed", reason=str(error))
            continue
        if again is not None:
            twin = _twin_row(again, outputs, replace(about, case="two runs of one feed"))
            measured.self_difference = twin.rel_l2 or 0.0
            yield twin
        yield from output_rows(case, outputs, replace(about, case=case.name))


def _twin_row(second: TensorMap, first: TensorMap, about: Row) -> Row:
    """What the engine does not determine, in the output that differs most."""
    found = [
        compare(second[name], first[name], component=about.component, tensor=name) for name in first
    ]
    return with_comparison(about, max(found, key=lambda one: one.rel_l2))


def output_rows(case: RecordedCase, outputs: TensorMap, about: Row) -> Iterator[Row]:
    """What one feed gave against what the reference gave: a row for each output, not judged."""
    fed = _feed_sha256(case.feed)
    if case.component == "unet":
        timestep = float(np.ravel(case.feed["timestep"])[0])
        about = replace(about, timestep=timestep)
    for tensor, expected in case.outputs.items():
        actual = outputs[tensor]
        hashed = replace(about, feed_sha256=fed, actual_sha256=array_sha256(actual))
        for branch, one, other in _branches(actual, expected, has_halves=case.has_halves):
            found = compare(one, other, component=case.component, tensor=tensor)
            yield with_comparison(replace(hashed, branch=branch), found)


def _branches(
    actual: Array, expected: Array, *, has_halves: bool
) -> Iterator[tuple[Branch | None, Array, Array]]:
    if not has_halves:
        yield None, actual, expected
        return
    halves = zip(_HALVES, np.split(actual, 2), np.split(expected, 2), strict=True)
    yield from halves


def _feed_sha256(feed: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(feed):
        digest.update(f"{name} {array_sha256(feed[name])}".encode())
    return digest.hexdigest()


def not_run_row(candidate: Candidate, stage: Stage, component: ComponentName, reason: str) -> Row:
    """A row about what did not run."""
    return Row(
        stage=stage,
        component=component,
        case="",
        precision=candidate.precisions.get(component, "fp32"),
        verdict="not_run",
        reason=reason,
    )
