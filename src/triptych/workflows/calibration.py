"""What a U-Net is fed in real runs, recorded for a quantiser to look at activations."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from triptych.bundle.bundle import bundle_from_checkpoint
from triptych.bundle.layouts import component_bindings
from triptych.errors import BrokenInputError, UsageError
from triptych.exporters.base import CalibrationSettings
from triptych.models.checkpoint import Checkpoint
from triptych.parity.record import default_settings
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.pytorch import Pytorch
from triptych.sampling.inpaint import unet_sample
from triptych.sampling.pipeline import Prepared, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.types import Array, FormatName, TensorMap
from triptych.workflows.diffusers_schedulers import read_any_sampler

MAX_FEEDS = 200
"""Recorded inputs at most, spread evenly over all steps of all prompts: every one is held by the
quantiser, and costs it a call of the U-Net. Source: optimum-intel 1.27.0's num_samples."""


def read_calibration(path: Path, *, num_inference_steps: int) -> CalibrationSettings:
    """The prompts of a file, one a line.

    Raises:
        BrokenInputError: it cannot be read.
        UsageError: no prompt is in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenInputError(f"{path}: got {error}, want a text file of prompts.") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UsageError(f"{path}: got no prompt, want one on each line.")
    return CalibrationSettings(prompts=prompts, num_inference_steps=num_inference_steps)


def num_feeds(calibration: CalibrationSettings) -> int:
    """How many inputs are recorded."""
    return min(MAX_FEEDS, len(calibration.prompts) * calibration.num_inference_steps)


def record_feeds(
    checkpoint: Checkpoint, calibration: CalibrationSettings, folder: Path, *, to: FormatName
) -> None:
    """Run a checkpoint in PyTorch at the size it was trained at, guided, and write what it is fed.

    Args:
        checkpoint: whose U-Net.
        calibration: the prompts and steps.
        folder: gets one file a recorded input, by the format's names.
        to: the format.

    Raises:
        BackendError: PyTorch is missing.
    """
    bindings = component_bindings("unet", checkpoint.config, artifact_format=to)
    names = {binding.name: binding.artifact_name for binding in bindings.inputs}
    total = len(calibration.prompts) * calibration.num_inference_steps
    wanted = num_feeds(calibration)
    for index, feed in enumerate(_feeds(checkpoint, calibration)):
        if index * wanted // total != (index - 1) * wanted // total:
            named = {names[name]: np.asarray(array, order="C") for name, array in feed.items()}
            save_file(named, folder / f"{index:06}.safetensors")


def _feeds(checkpoint: Checkpoint, calibration: CalibrationSettings) -> Iterator[TensorMap]:
    bundle = bundle_from_checkpoint(checkpoint)
    runtime = Pytorch(settings=RuntimeSettings())
    for seed, prompt in enumerate(calibration.prompts):
        usual = default_settings(
            bundle.config, num_inference_steps=calibration.num_inference_steps, seed=seed
        )
        settings = replace(usual, prompts=Prompts(prompt=(prompt,)))
        prepared = prepare(bundle, runtime, settings, make_sampler=read_any_sampler)
        latents = prepared.start.latents
        for index, event in enumerate(denoise(bundle, runtime, prepared)):
            yield _unet_feed(prepared, latents, index)
            latents = event.latents


def _unet_feed(prepared: Prepared, latents: Array, index: int) -> TensorMap:
    """What the U-Net was given at a step, both halves of guidance."""
    position = prepared.part.first + index
    conditioning = prepared.conditioning
    sample = unet_sample(latents, prepared.schedule, position, prepared.start.inpaint)
    return {
        "sample": np.concatenate([sample] * (len(conditioning.text_embeds) // len(sample))),
        "timestep": np.array(prepared.schedule.timesteps[position], np.float32),
        "encoder_hidden_states": conditioning.encoder_hidden_states,
        "text_embeds": conditioning.text_embeds,
        "time_ids": conditioning.time_ids,
    }
