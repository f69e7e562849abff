"""The files of one run: pictures, previews, latents, and the record that repeats it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

import triptych
from triptych.bundle.bundle import Bundle
from triptych.bundle.layouts import MANIFEST_NAME
from triptych.bundle.store import file_sha256
from triptych.runtimes.base import Execution, Runtime
from triptych.sampling.pipeline import Prepared
from triptych.sampling.prompt_embeddings import PromptEmbeddings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import Array, ImagePixels, Latents

RUN_FILE = "run.json"
"""Everything needed to repeat a run; every folder of a run has one."""


def write_previews(pixels: Mapping[int, ImagePixels], folder: Path) -> None:
    """Write preview_01.png and so on."""
    width = _digits(max(pixels, default=0))
    for step, pictures in pixels.items():
        _write_png(pictures, folder, f"preview_{step:0{width}d}")


def write_pictures(pixels: Mapping[int, Array], folder: Path) -> dict[int, tuple[str, ...]]:
    """Write step_01.png and so on, and final.png with the last step's; return the names by step."""
    width = _digits(max(pixels, default=0))
    names = {
        step: _write_png(pictures, folder, f"step_{step:0{width}d}")
        for step, pictures in sorted(pixels.items())
    }
    if pixels:
        _write_png(pixels[max(pixels)], folder, "final")
    return names


def _write_png(pixels: Array, folder: Path, stem: str) -> tuple[str, ...]:
    """One file for one picture; numbered files for several."""
    from PIL import Image

    names = tuple(
        f"{stem}.png" if len(pixels) == 1 else f"{stem}_{number}.png"
        for number in range(len(pixels))
    )
    for name, picture in zip(names, pixels, strict=True):
        Image.fromarray(picture).save(folder / name)
    return names


def _digits(last: int) -> int:
    return max(2, len(str(last)))


def write_latents(
    prepared: Prepared, steps: Mapping[int, Latents], last: Latents, folder: Path
) -> None:
    """Write latents.safetensors: the unit noise, each saved step, and the final latents."""
    from safetensors.numpy import save

    width = _digits(max(steps, default=0))
    tensors = {f"step_{step:0{width}d}": latents for step, latents in steps.items()}
    contiguous = {
        name: np.ascontiguousarray(tensor)
        for name, tensor in {"noise": prepared.start.noise, **tensors, "final": last}.items()
    }
    # Its save_file hides that a disk is full in an error of its own.
    (folder / "latents.safetensors").write_bytes(save(contiguous))


def stage_record(
    bundle: Bundle, runtime: Runtime, prepared: Prepared, *, execution: Execution, last: Latents
) -> dict[str, object]:
    """Everything needed to repeat a model's part of a run, and to see whether it was the same.

    Args:
        bundle: what was sampled from.
        runtime: on which engine.
        prepared: the run.
        execution: what the U-Net ran on.
        last: its last latents.
    """
    settings = prepared.settings
    manifest = bundle.folder / MANIFEST_NAME
    return {
        "bundle": {
            "path": str(bundle.folder),
            "format": bundle.format,
            "manifest_sha256": file_sha256(manifest) if manifest.is_file() else None,
        },
        "runtime": {
            "name": runtime.name,
            "version": execution.version,
            "device": execution.device,
            "precision": execution.precision,
            "details": dict(execution.details),
        },
        "text_encoders": {
            name: asdict(execution) for name, execution in prepared.executions.items()
        },
        "prompts": _prompts_record(settings.prompts),
        "input_ids": {name: ids.tolist() for name, ids in prepared.encoded.input_ids.items()},
        "num_truncated_tokens": {
            name: list(counts) for name, counts in prepared.encoded.num_truncated.items()
        },
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_mode": settings.guidance_mode,
        "guidance_rescale": settings.guidance_rescale,
        "guidance_scales": list(prepared.guidance_scales),
        "num_images_per_prompt": settings.num_images_per_prompt,
        "seeds": list(settings.seeds) if settings.noise is None else None,
        "height_px": prepared.height_px,
        "width_px": prepared.width_px,
        "time_ids": prepared.conditioning.time_ids.tolist(),
        "scheduler": {
            "config": json.loads(
                (bundle.folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
            ),
            "choice": asdict(settings.scheduler),
            "noise_stream": prepared.start.noise_stream.record(),
            "timesteps": [float(timestep) for timestep in prepared.schedule.timesteps],
            "sigmas": [float(sigma) for sigma in prepared.schedule.sigmas],
            "init_noise_sigma": prepared.schedule.init_noise_sigma,
        },
        "start": _start_record(prepared),
        "noise_sha256": _array_sha256(prepared.start.noise),
        "final_latents_sha256": _array_sha256(last),
    }


def environment_record() -> dict[str, object]:
    """What the run was made with."""
    return {
        "schema_version": 1,
        "triptych": triptych.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _start_record(prepared: Prepared) -> dict[str, object]:
    """What the run started from, and which part of the schedule it took."""
    settings, start = prepared.settings, prepared.start
    return {
        "kind": _start_kind(settings),
        "latents_sha256": _array_sha256(start.latents),
        "mask_sha256": None if start.inpaint is None else _array_sha256(start.inpaint.mask),
        "strength": None if settings.start is None else settings.start.strength,
        "denoising_start": settings.denoising_start,
        "denoising_end": settings.denoising_end,
        "first_step": prepared.part.first,
        "num_steps": prepared.part.num_steps,
    }


def _start_kind(settings: Settings) -> str:
    if settings.start is None:
        return "noise"
    kind = "latents" if settings.start.image is None else "image"
    return kind if settings.start.mask is None else f"{kind} and mask"


def _prompts_record(prompts: Prompts | PromptEmbeddings) -> dict[str, object]:
    """Texts as they are; embeddings by their hashes."""
    if isinstance(prompts, Prompts):
        return asdict(prompts)
    return {f"{name}_sha256": _array_sha256(tensor) for name, tensor in prompts.tensors().items()}


def _array_sha256(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
