"""One run, compared step by step: where its error is made, and where it is only handed on.

With x the reference's latents, y the candidate's, e and f the two models' predictions:

    f(y) - e(x)  =  f(y) - e(y)   the model's error where the candidate is    (S, self-state)
                 +  e(y) - e(x)   what the reference too would do there       (inherited)

L (teacher-forced) is f(x) - e(x), the model's error on the reference's path: nothing is inherited,
and no reference is needed to run it. F (free-running) is y - x. The errors of L put through the
solver, as if the run did not react to them, add up to what F would be; F over that is the gain.

Source: Li and van der Schaar 2024, arXiv:2308.05021, who call these modular and cumulative error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, NonFiniteError, UsageError
from triptych.parity.candidate import Candidate
from triptych.parity.compare import compare
from triptych.parity.floors import floor_table
from triptych.parity.gates import Gates, judged
from triptych.parity.metrics import cosine, rel_l2
from triptych.parity.recording import Recording
from triptych.parity.report import Row, Stage, with_comparison
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.guidance import predict_noise
from triptych.sampling.inpaint import unet_sample, with_kept_part
from triptych.sampling.network import Network
from triptych.sampling.pipeline import Prepared, denoise
from triptych.sampling.schedule import denoised_from_noise_pred
from triptych.types import Array, Latents, NoisePred, Precision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What a run went through, as far as it got.

    Attributes:
        latents: before each step and after the last.
        noise_preds: guided predictions, one a step.
        stopped_by: what ended it early; empty where it came to its end.
    """

    latents: tuple[Latents, ...]
    noise_preds: tuple[NoisePred, ...]
    stopped_by: str = ""


def teacher_forced_path(recording: Recording, candidate: Candidate, prepared: Prepared) -> Path:
    """The candidate's predictions on the reference's own latents, and where they would lead.

    `latents` are the solver's, fed with these predictions from the same start: each is what the
    run would hold if the model did not react to the errors before.
    """
    solver, schedule = prepared.solver, prepared.schedule
    state = solver.init(schedule, recording.noise_stream)
    latents, noise_preds, stopped_by = [recording.latents[0]], list[NoisePred](), ""
    try:
        with open_session(candidate.runtime, candidate.bundle, "unet") as unet:
            for index in range(len(recording.noise_preds)):
                given = recording.latents[index]
                noise_pred = _predict(unet, given, index, recording, prepared)
                position = prepared.part.first + index
                step = solver.step(latents[-1], noise_pred, schedule, position, state)
                state = step.state
                is_last = index + 1 == len(recording.noise_preds)
                following = None if is_last else position + 1
                kept = with_kept_part(
                    step.latents, schedule, recording.inpaint, next_index=following
                )
                latents.append(kept.astype(np.float32))
                noise_preds.append(noise_pred)
    except (NonFiniteError, BackendError) as error:
        stopped_by = str(error)
    return Path(latents=tuple(latents), noise_preds=tuple(noise_preds), stopped_by=stopped_by)


def free_path(
    candidate: Candidate,
    prepared: Prepared,
    *,
    on_open: Callable[[Execution], None] | None = None,
) -> Path:
    """The candidate's own run; `on_open` is told what its U-Net runs on."""
    latents, noise_preds, stopped_by = [prepared.start.latents], list[NoisePred](), ""
    try:
        for event in denoise(candidate.bundle, candidate.runtime, prepared, on_open=on_open):
            latents.append(event.latents.copy())
            noise_preds.append(event.noise_pred.copy())
    except (NonFiniteError, BackendError) as error:
        stopped_by = str(error)
    return Path(latents=tuple(latents), noise_preds=tuple(noise_preds), stopped_by=stopped_by)


def self_state_predictions(
    recording: Recording, path: Path, prepared: Prepared, *, reference: Bundle, runtime: Runtime
) -> tuple[NoisePred, ...]:
    """The reference's predictions on the latents that the candidate went through."""
    with open_session(runtime, reference, "unet") as unet:
        return tuple(
            _predict(unet, given, index, recording, prepared)
            for index, given in enumerate(path.latents[: len(path.noise_preds)])
        )


def teacher_forced_rows(
    recording: Recording, candidate: Candidate, prepared: Prepared, path: Path, *, ran: str
) -> Iterator[Row]:
    """L: one row a step, with the cosine of its error with the step's before."""
    errors: list[Array] = []
    about = _about("teacher_forced", candidate, ran)
    for index, actual in enumerate(path.noise_preds):
        expected = recording.noise_preds[index]
        errors.append(actual.astype(np.float64) - expected)
        row = _step_row(about, prepared, index, actual, expected, tensor="noise_pred")
        yield replace(
            row,
            branch="guided" if _is_guided(prepared) else None,
            error_cosine=cosine(errors[-1], errors[-2]) if index else None,
        )


def free_running_rows(
    recording: Recording,
    candidate: Candidate,
    prepared: Prepared,
    path: Path,
    *,
    additive: Sequence[Latents],
    ran: str,
) -> Iterator[Row]:
    """F: one row a step, with the gain over what the steps' own errors add up to.

    Args:
        recording: the reference.
        candidate: what ran.
        prepared: its run.
        path: what it went through.
        additive: the latents of `teacher_forced_path`; may be shorter.
        ran: what the engine says it computed in.
    """
    about = replace(_about("free_running", candidate, ran), precision=candidate.run_precision)
    for index in range(len(path.latents) - 1):
        expected = recording.latents[index + 1]
        row = _step_row(about, prepared, index, path.latents[index + 1], expected, tensor="latents")
        if index < len(path.noise_preds):
            row = replace(row, denoised_rel_l2=_denoised_rel_l2(recording, prepared, path, index))
        if index + 1 < len(additive):
            row = _with_gain(row, additive[index + 1], expected)
        yield row


def self_state_rows(
    candidate: Candidate,
    prepared: Prepared,
    path: Path,
    predictions: Sequence[NoisePred],
    *,
    ran: str,
) -> Iterator[Row]:
    """S: one row a step."""
    about = _about("self_state", candidate, ran)
    for index, expected in enumerate(predictions):
        yield _step_row(
            about, prepared, index, path.noise_preds[index], expected, tensor="noise_pred"
        )


def foreign_run_rows(
    recording: Recording,
    latents: Mapping[int, Latents],
    *,
    precision: Precision,
) -> tuple[Row, ...]:
    """F of a run that another pipeline made: optimum's, GenAI's, Swift's.

    Args:
        recording: the reference. The other run must have started from its noise.
        latents: what a callback of the other pipeline saw, by step, counted from 1.
        precision: the class that it is judged in.

    Raises:
        UsageError: a step that the reference does not have.
        TensorMismatchError: latents of another shape.
    """
    unknown = [step for step in latents if not 1 <= step < len(recording.latents)]
    if unknown:
        raise UsageError(
            f"latents: got step {unknown[0]}, want 1 to {len(recording.latents) - 1}, the steps of "
            "the recording."
        )
    gates = Gates(
        runtime="",
        guidance_scale=recording.settings.guidance_scale,
        floors=floor_table(recording.floors),
    )
    about = Row(
        stage="free_running", component="unet", case="another pipeline", precision=precision
    )
    return tuple(
        judged(
            with_comparison(
                replace(about, step=step),
                compare(actual, recording.latents[step], component="unet", tensor="latents"),
            ),
            gates,
        )
        for step, actual in sorted(latents.items())
    )


def stopped_rows(candidate: Candidate, path: Path, *, run: str) -> Iterator[Row]:
    """What ended a run before its end, with the step; nothing where none did."""
    if path.stopped_by:
        step = len(path.noise_preds) + 1
        yield replace(
            _about("finiteness", candidate, ""),
            case=run,
            step=step,
            verdict="failed",
            reason=f"step {step}: {path.stopped_by}",
        )


def _predict(
    unet: Network, latents: Latents, index: int, recording: Recording, prepared: Prepared
) -> NoisePred:
    """A guided prediction on given latents, with the reference's conditioning."""
    position = prepared.part.first + index
    return predict_noise(
        unet,
        unet_sample(latents, prepared.schedule, position, recording.inpaint),
        timestep=float(prepared.schedule.timesteps[position]),
        conditioning=recording.conditioning,
        guidance_scale=prepared.guidance_scales[index],
        guidance_rescale=prepared.settings.guidance_rescale,
        mode=prepared.settings.guidance_mode,
    )


def _is_guided(prepared: Prepared) -> bool:
    return len(prepared.conditioning.text_embeds) == 2 * len(prepared.start.latents)


def _about(stage: Stage, candidate: Candidate, ran: str) -> Row:
    precision = candidate.precisions["unet"]
    return Row(stage=stage, component="unet", case="", precision=precision, ran=ran)


def _step_row(
    about: Row, prepared: Prepared, index: int, actual: Array, expected: Array, *, tensor: str
) -> Row:
    position = prepared.part.first + index
    timestep = float(prepared.schedule.timesteps[position])
    row = replace(
        about,
        case=f"t={timestep:g}",
        step=index + 1,
        timestep=timestep,
        sigma=float(prepared.schedule.sigmas[position]),
    )
    return with_comparison(row, compare(actual, expected, component="unet", tensor=tensor))


def _denoised_rel_l2(recording: Recording, prepared: Prepared, path: Path, index: int) -> float:
    schedule, position = prepared.schedule, prepared.part.first + index
    actual, expected = (
        denoised_from_noise_pred(noise_preds[index], latents[index], schedule, position)
        for noise_preds, latents in (
            (path.noise_preds, path.latents),
            (recording.noise_preds, recording.latents),
        )
    )
    return rel_l2(actual, expected)


def _with_gain(row: Row, additive: Latents, expected: Latents) -> Row:
    predicted = rel_l2(additive, expected)
    gain = row.rel_l2 / predicted if row.rel_l2 is not None and predicted > 0 else None
    return replace(row, additive_rel_l2=predicted, gain=gain)
