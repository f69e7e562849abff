"""Sample from a bundle into a folder: pictures of chosen steps, latents, and how to repeat it."""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np

import triptych
from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.layouts import MANIFEST_NAME
from triptych.bundle.store import file_sha256, replace_folder
from triptych.errors import BrokenInputError, UsageError
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.sampling.callbacks import StepCallback
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.loop import Observer, StepEvent
from triptych.sampling.observers import StepKeeper, check_save_steps, observe
from triptych.sampling.preview import preview_pixels
from triptych.sampling.text_to_image import Prepared, Settings, decode, denoise, prepare
from triptych.types import Array, ImagePixels, Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What to sample, and where to put it.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        output: a folder to make.
        settings: what to draw.
        save_steps: steps to save pictures of; empty saves the last.
        previews: write a linear preview of every step as well.
        runtime: the engine; None takes the one that reads the bundle's format.
        runtime_settings: device, precision, threads.
        variant: the weight variant, for a checkpoint.
        verify: compare every file's hash with the manifest first.
        overwrite: replace an existing output folder.
    """

    bundle: Path
    output: Path
    settings: Settings
    save_steps: Sequence[int] = ()
    previews: bool = False
    runtime: str | None = None
    runtime_settings: RuntimeSettings
    variant: str | None = None
    verify: bool = True
    overwrite: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """What a run left.

    Attributes:
        output: the folder.
        pictures: files by step, several for several pictures.
        pixels: the same pictures as arrays, by step.
        run: what run.json holds.
        warnings: what the user should know, such as prompts that were cut.
    """

    output: Path
    pictures: Mapping[int, tuple[Path, ...]]
    pixels: Mapping[int, ImagePixels]
    run: Mapping[str, object]
    warnings: tuple[str, ...]


def sample(
    request: SampleRequest,
    *,
    observers: Iterable[Observer] = (),
    callback_on_step_end: StepCallback | None = None,
    callback_on_step_end_tensor_inputs: Iterable[str] = ("latents",),
) -> SampleResult:
    """Run the sampler and write step_01.png ..., final.png, latents.safetensors and run.json.

    final.png has the pixels of the last saved step. The output folder appears when everything in
    it is written.

    Args:
        request: what and where.
        observers: shown every step.
        callback_on_step_end: diffusers' contract.
        callback_on_step_end_tensor_inputs: what the callback is given.

    Raises:
        UsageError: settings that cannot be, or an output folder that exists.
        BundleError: the bundle is incomplete or corrupt.
        NonFiniteError: a component gave NaN or infinity.
        BackendError: the engine or device is missing.
    """
    steps = check_save_steps(
        request.save_steps or (request.settings.num_inference_steps,),
        num_inference_steps=request.settings.num_inference_steps,
    )
    bundle = open_bundle(request.bundle, variant=request.variant)
    runtime = choose_runtime(bundle, request.runtime, request.runtime_settings)
    with replace_folder(request.output, overwrite=request.overwrite) as folder:
        if request.verify:
            bundle.check_files()
        prepared = prepare(bundle, runtime, request.settings)
        keeper = StepKeeper(steps)
        watchers: list[Observer] = [keeper, *observers]
        if request.previews:
            watchers.append(_PreviewWriter(folder))
        events = denoise(
            bundle,
            runtime,
            prepared,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        last = _last(observe(events, watchers))
        images = decode(bundle, runtime, {str(step): x for step, x in keeper.latents.items()})
        pixels = {int(step): pixels_from_image(image) for step, image in images.items()}
        names = _write_pictures(pixels, folder)
        _write_latents(prepared, keeper.latents, last, folder)
        run = _run_record(request, bundle, runtime, prepared, last)
        (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return SampleResult(
        output=request.output,
        pictures={
            step: tuple(request.output / name for name in files) for step, files in names.items()
        },
        pixels=pixels,
        run=run,
        warnings=tuple(_truncation_warnings(prepared)),
    )


def choose_runtime(bundle: Bundle, name: str | None, settings: RuntimeSettings) -> Runtime:
    """The engine that was asked for, or the first that reads the bundle's format.

    Raises:
        UsageError: no such engine, or it does not read this format.
    """
    able = runtimes_for(bundle.format)
    if name is not None and make_runtime(name).name not in able:
        raise UsageError(
            f"runtime: got {name!r} for a bundle in {bundle.format} format, "
            f"want {' or '.join(able)}."
        )
    return make_runtime(name or able[0], settings)


def read_noise(path: Path) -> Latents:
    """Unit noise from a .safetensors file (tensor "noise" or "latents") or a .npy file.

    Raises:
        BrokenInputError: the file is missing, unreadable or holds no such tensor.
    """
    try:
        noise = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    except (OSError, ValueError) as error:
        raise BrokenInputError(f"{path}: got {error}, want .safetensors or .npy noise.") from error
    if noise.ndim != 4 or not np.isfinite(noise).all():
        raise BrokenInputError(
            f"{path}: got {noise.dtype} {list(noise.shape)}, want finite noise "
            "[batch, 4, height_px/8, width_px/8]."
        )
    return noise.astype(np.float32)


def _read_npy(path: Path) -> Array:
    loaded: Array = np.load(path, allow_pickle=False)
    return loaded


def _read_safetensors(path: Path) -> Array:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise BrokenInputError(f"{path}: got {error}, want a safetensors file.") from error
    for name in ("noise", "latents"):
        if name in tensors:
            found: Array = tensors[name]
            return found
    raise BrokenInputError(f"{path}: got tensors {', '.join(tensors)}, want 'noise' or 'latents'.")


@final
class _PreviewWriter:
    """Writes a linear preview of what each step believes the picture is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, event: StepEvent) -> None:
        width = _digits(event.num_inference_steps)
        name = f"preview_{event.index + 1:0{width}d}"
        _write_png(preview_pixels(event.denoised), self._folder, name)


def _truncation_warnings(prepared: Prepared) -> Iterator[str]:
    for name, counts in prepared.encoded.num_truncated.items():
        for row, count in enumerate(counts):
            if count:
                yield f"{name}: prompt {row} is {count} tokens too long; they were cut off"


def _last(events: Iterable[StepEvent]) -> Latents:
    latents: Latents | None = None
    for event in events:
        latents = event.latents
    if latents is None:
        raise UsageError("run: got no steps, want at least one.")
    return latents.copy()


def _write_pictures(pixels: Mapping[int, ImagePixels], folder: Path) -> dict[int, tuple[str, ...]]:
    width = _digits(max(pixels, default=0))
    names = {
        step: _write_png(pictures, folder, f"step_{step:0{width}d}")
        for step, pictures in sorted(pixels.items())
    }
    if pixels:
        _write_png(pixels[max(pixels)], folder, "final")
    return names


def _write_png(pixels: ImagePixels, folder: Path, stem: str) -> tuple[str, ...]:
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


def _write_latents(
    prepared: Prepared, steps: Mapping[int, Latents], last: Latents, folder: Path
) -> None:
    from safetensors.numpy import save_file

    width = _digits(max(steps, default=0))
    tensors = {f"step_{step:0{width}d}": latents for step, latents in steps.items()}
    contiguous = {
        name: np.ascontiguousarray(tensor)
        for name, tensor in {"noise": prepared.noise, **tensors, "final": last}.items()
    }
    save_file(contiguous, folder / "latents.safetensors")


def _run_record(
    request: SampleRequest,
    bundle: Bundle,
    runtime: Runtime,
    prepared: Prepared,
    last: Latents,
) -> dict[str, object]:
    """Everything needed to repeat the run, and to see whether a repetition was the same."""
    settings = request.settings
    manifest = bundle.folder / MANIFEST_NAME
    execution = next(iter(prepared.executions.values()))
    return {
        "schema_version": 1,
        "triptych": triptych.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bundle": {
            "path": str(request.bundle),
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
        "prompts": asdict(settings.prompts),
        "input_ids": {name: ids.tolist() for name, ids in prepared.encoded.input_ids.items()},
        "num_truncated_tokens": {
            name: list(counts) for name, counts in prepared.encoded.num_truncated.items()
        },
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_mode": settings.guidance_mode,
        "num_images_per_prompt": settings.num_images_per_prompt,
        "seeds": list(settings.seeds) if settings.noise is None else None,
        "height_px": prepared.height_px,
        "width_px": prepared.width_px,
        "time_ids": prepared.conditioning.time_ids.tolist(),
        "scheduler": {
            "config": json.loads(
                (bundle.folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
            ),
            "timesteps": [float(timestep) for timestep in prepared.schedule.timesteps],
            "sigmas": [float(sigma) for sigma in prepared.schedule.sigmas],
            "init_noise_sigma": prepared.schedule.init_noise_sigma,
        },
        "save_steps": list(request.save_steps) or [settings.num_inference_steps],
        "noise_sha256": _array_sha256(prepared.noise),
        "final_latents_sha256": _array_sha256(last),
    }


def _array_sha256(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
