"""The denoising loop: a generator of immutable step records. Everything else sits on top of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, final

from triptych.sampling.callbacks import (
    SamplingRun,
    StepCallback,
    apply_callback,
    asked_tensors,
)
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.guidance import GuidanceMode, predict_noise
from triptych.sampling.inpaint import Inpaint, unet_sample, with_kept_part
from triptych.sampling.network import Network
from triptych.sampling.noise import NoiseStream
from triptych.sampling.run_part import RunPart, whole_run
from triptych.sampling.schedule import Schedule
from triptych.sampling.solvers.base import Solver
from triptych.sampling.step_tensors import StepTensors
from triptych.types import Array, Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What one step did. Arrays are read-only views: copy what must outlive the next step.

    Attributes:
        index: the step, 0 to num_inference_steps - 1.
        num_inference_steps: steps of the whole run.
        timestep: position on the training schedule that the U-Net was told.
        sigma: noise level before the step.
        sigma_next: noise level after it.
        latents: after the step and its callbacks.
        noise_pred: the U-Net's prediction after guidance.
        denoised: the step's estimate of x0.
        noise_stream: where the generators stand; None where the run was given none.
    """

    index: int
    num_inference_steps: int
    timestep: float
    sigma: float
    sigma_next: float
    latents: Latents
    noise_pred: NoisePred
    denoised: Latents
    noise_stream: NoiseStream | None = None


Observer: TypeAlias = Callable[[StepEvent], None]
"""Looks at a step and changes nothing: saves, previews, counts, records."""


def iterate(
    unet: Network,
    *,
    schedule: Schedule,
    solver: Solver,
    latents: Latents,
    conditioning: Conditioning,
    noise: NoiseStream | None = None,
    part: RunPart | None = None,
    inpaint: Inpaint | None = None,
    guidance_scale: float = 5.0,
    guidance_mode: GuidanceMode = "batched",
    guidance_rescale: float = 0.0,
    callback_on_step_end: StepCallback | None = None,
    callback_on_step_end_tensor_inputs: Iterable[str] = ("latents",),
) -> Iterator[StepEvent]:
    """Denoise, one step at each `next`. Stop taking, and no further step is computed.

    Args:
        unet: the U-Net.
        schedule: timesteps and sigmas.
        solver: moves the latents along.
        latents: the start, at the noise level before the first step.
        conditioning: both halves where `guidance_scale` is above 1.
        noise: where the generators of the first latents stand, for solvers that add noise.
        part: the steps to take; None takes all. Events and callbacks count from its first.
        inpaint: what a run with a mask keeps to.
        guidance_scale: w; up to 1 means no guidance.
        guidance_mode: one U-Net call a step, or two.
        guidance_rescale: phi: see `rescaled_guidance`.
        callback_on_step_end: diffusers' contract; may replace tensors, change the guidance scale
            or interrupt.
        callback_on_step_end_tensor_inputs: names of the tensors it is given, where it does not
            say so itself.

    Yields:
        One event a step.

    Raises:
        UsageError: the callback asks for, or returns, something it may not; the solver adds
            noise, and there is no stream to draw it from.
    """
    tensors = StepTensors(latents=latents, conditioning=conditioning, inpaint=inpaint)
    names = asked_tensors(
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
        known=tensors.named(guided=False),
    )
    part = part or whole_run(schedule)
    run = SamplingRun(
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        num_timesteps=part.num_steps,
    )
    state = solver.init(schedule, noise)
    for index in range(part.num_steps):
        position = part.first + index
        timestep = float(schedule.timesteps[position])
        noise_pred = predict_noise(
            unet,
            unet_sample(tensors.latents, schedule, position, tensors.inpaint),
            timestep=timestep,
            conditioning=tensors.conditioning,
            guidance_scale=run.guidance_scale,
            guidance_rescale=run.guidance_rescale,
            mode=guidance_mode,
        )
        step = solver.step(tensors.latents, noise_pred, schedule, position, state)
        state = step.state
        following = position + 1 if index + 1 < part.num_steps else None
        latents = with_kept_part(step.latents, schedule, tensors.inpaint, next_index=following)
        tensors = replace(tensors, latents=latents)
        if callback_on_step_end is not None:
            tensors = apply_callback(
                callback_on_step_end,
                run=run,
                index=index,
                timestep=timestep,
                names=names,
                tensors=tensors,
            )
        yield StepEvent(
            index=index,
            num_inference_steps=part.num_steps,
            timestep=timestep,
            sigma=float(schedule.sigmas[position]),
            sigma_next=float(schedule.sigmas[position + 1]),
            latents=_read_only(tensors.latents),
            noise_pred=_read_only(noise_pred),
            denoised=_read_only(step.denoised.astype(tensors.latents.dtype)),
            noise_stream=state.noise or noise,
        )
        if run.interrupt:
            return


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view
