"""Sampling into a folder: its files, what they promise, and what is left when a run fails."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from triptych.bundle.bundle import Bundle
from triptych.errors import (
    BlankPictureError,
    BrokenInputError,
    BundleError,
    OutputError,
    UsageError,
)
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.callbacks import SamplingRun
from triptych.sampling.loop import StepEvent
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.types import Array
from triptych.workflows.noise_file import read_noise
from triptych.workflows.runtime_choice import choose_runtime
from triptych.workflows.sample import sample
from triptych.workflows.sample_request import SampleRequest

STEPS = 3


def request(bundle: Path, output: Path, **changes: object) -> SampleRequest:
    settings = {
        "prompts": Prompts(prompt=("a cat",)),
        "num_inference_steps": STEPS,
        "height_px": 64,
        "width_px": 72,
    }
    own = {name: changes.pop(name) for name in list(changes) if name in Settings.__slots__}
    return SampleRequest(
        bundle=bundle,
        output=output,
        settings=Settings(**{**settings, **own}),  # type: ignore[arg-type]
        runtime_settings=RuntimeSettings(),
        **changes,  # type: ignore[arg-type]
    )


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels(path: Path) -> Array:
    with Image.open(path) as picture:
        return np.asarray(picture)


def sha256(array: Array) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


# --- the files -----------------------------------------------------------------------------------


def test_chosen_steps_are_written_and_the_last_is_final(onnx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "pictures"
    result = sample(request(onnx_folder, output, save_steps=(2, 1)))

    expected = {"step_01.png", "step_02.png", "final.png", "latents.safetensors", "run.json"}
    assert files(output) == expected
    assert files(output.parent) == {"pictures"}
    np.testing.assert_array_equal(pixels(output / "final.png"), pixels(output / "step_02.png"))
    assert pixels(output / "final.png").shape == (64, 72, 3)
    np.testing.assert_array_equal(pixels(output / "step_01.png"), result.pixels[1][0])
    assert not np.array_equal(result.pixels[1], result.pixels[2])
    assert result.pictures == {1: (output / "step_01.png",), 2: (output / "step_02.png",)}


def test_the_last_step_is_saved_unless_others_are_asked_for(
    onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pictures"
    result = sample(request(onnx_folder, output))
    assert set(result.pictures) == {STEPS}
    assert {"step_03.png", "final.png"} < files(output)


def test_several_pictures_are_numbered(onnx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    sample(request(onnx_folder, output, num_images_per_prompt=2, seeds=(4, 5)))
    assert files(output) == {
        *("step_03_0.png", "step_03_1.png", "final_0.png", "final_1.png"),
        *("latents.safetensors", "run.json"),
    }
    assert not np.array_equal(pixels(output / "final_0.png"), pixels(output / "final_1.png"))


def test_previews_are_one_small_picture_a_step(onnx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    sample(request(onnx_folder, output, previews="linear"))
    previews = sorted(name for name in files(output) if name.startswith("preview"))
    assert previews == ["preview_01.png", "preview_02.png", "preview_03.png"]
    assert pixels(output / "preview_01.png").shape == (8, 9, 3)


def test_previews_by_the_vae_are_the_pictures_of_each_step(
    onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pictures"
    wish = request(onnx_folder, output, previews="vae", preview_of="latents", save_steps=(1, 2, 3))
    sample(wish)
    for step in (1, 2, 3):
        shown = pixels(output / f"preview_{step:02}.png")
        np.testing.assert_array_equal(shown, pixels(output / f"step_{step:02}.png"))


def test_previews_show_what_a_step_believes_or_holds(onnx_folder: Path, tmp_path: Path) -> None:
    for of in ("denoised", "latents"):
        sample(request(onnx_folder, tmp_path / of, previews="vae", preview_of=of))
    believed, held = (pixels(tmp_path / of / "preview_01.png") for of in ("denoised", "latents"))
    assert not np.array_equal(believed, held)
    ends = [pixels(tmp_path / of / "preview_03.png").astype(int) for of in ("denoised", "latents")]
    assert np.abs(ends[0] - ends[1]).max() <= 1  # Euler's last step ends at what it believes


def test_previews_by_the_small_decoder(preview_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    sample(request(preview_checkpoint, output, previews="preview-decoder"))
    with Image.open(output / "preview_03.png") as shown, Image.open(output / "final.png") as final:
        assert shown.size == final.size
    assert pixels(output / "preview_03.png").std() > 1


def test_previews_by_a_decoder_that_is_not_there(onnx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--preview-decoder FOLDER"):
        sample(request(onnx_folder, tmp_path / "pictures", previews="preview-decoder"))
    assert not (tmp_path / "pictures").exists()


def test_a_picture_of_one_colour_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(checkpoint, spoilt)
    weights = spoilt / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.weight"][:] = 0
    save_file(tensors, weights)
    with pytest.raises(BlankPictureError, match="one colour all over"):
        sample(request(spoilt, tmp_path / "pictures"))
    assert not (tmp_path / "pictures").exists()


def test_latents_hold_the_noise_the_saved_steps_and_the_end(
    onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pictures"
    seen: list[Array] = []

    def watch(event: StepEvent) -> None:
        seen.append(event.latents.copy())

    result = sample(request(onnx_folder, output, save_steps=(1,), seeds=(7,)), on_step=watch)

    tensors = load_file(output / "latents.safetensors")
    assert set(tensors) == {"noise", "step_01", "final"}
    shape = (1, 4, 8, 9)
    np.testing.assert_array_equal(tensors["noise"], draw_noise(NoiseStream(seeds=(7,)), shape)[0])
    np.testing.assert_array_equal(tensors["step_01"], seen[0])
    np.testing.assert_array_equal(tensors["final"], seen[-1])
    assert len(seen) == STEPS  # the run goes on to its end, whatever is saved
    assert result.run["noise_sha256"] == sha256(tensors["noise"])
    assert result.run["final_latents_sha256"] == sha256(tensors["final"])


def test_run_json_says_what_ran(onnx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    prompts = Prompts(prompt=("a cat",), negative_prompt=("fog",))
    result = sample(request(onnx_folder, output, prompts=prompts, guidance_scale=3.5, seeds=(9,)))

    run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert run == json.loads(json.dumps(result.run))
    assert run["prompts"] == {
        "prompt": ["a cat"],
        "prompt_2": None,
        "negative_prompt": ["fog"],
        "negative_prompt_2": None,
        "prompt_weighting": False,
        "clip_skip": 0,
    }
    assert (run["num_inference_steps"], run["guidance_scale"], run["seeds"]) == (STEPS, 3.5, [9])
    assert (run["height_px"], run["width_px"]) == (64, 72)
    assert run["time_ids"] == [[64, 72, 0, 0, 64, 72]] * 2
    assert run["save_steps"] == [STEPS]
    assert run["runtime"]["name"] == "onnxruntime"
    assert run["runtime"]["device"] == "CPUExecutionProvider"
    assert run["bundle"]["format"] == "onnx"
    manifest = (onnx_folder / "triptych.json").read_bytes()
    assert run["bundle"]["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert len(run["scheduler"]["timesteps"]) == STEPS
    assert len(run["scheduler"]["sigmas"]) == STEPS + 1
    assert len(run["input_ids"]["text_encoder"][0]) == 77


def test_weights_change_the_picture_and_stand_in_run_json(
    onnx_folder: Path, tmp_path: Path
) -> None:
    def latents(text: str) -> Array:
        prompts = Prompts(prompt=(text,), prompt_weighting=True)
        result = sample(request(onnx_folder, tmp_path / text, prompts=prompts))
        assert result.run["prompts"]["prompt_weighting"] is True  # type: ignore[index]
        assert len(result.run["input_ids"]["text_encoder"]) == 1  # type: ignore[index]
        final: Array = load_file(result.output / "latents.safetensors")["final"]
        return final

    plain, more, less = latents("a cat"), latents("a cat++"), latents("a cat--")
    assert not np.array_equal(plain, more)
    assert not np.array_equal(plain, less)


def test_prompts_that_were_cut_are_told(onnx_folder: Path, tmp_path: Path) -> None:
    prompts = Prompts(prompt=("a " * 80,))
    result = sample(request(onnx_folder, tmp_path / "pictures", prompts=prompts))
    assert result.warnings == (
        "text_encoder: prompt 0 is 5 tokens too long; they were cut off",
        "text_encoder_2: prompt 0 is 5 tokens too long; they were cut off",
    )


def test_a_callback_steers_the_run(onnx_folder: Path, tmp_path: Path) -> None:
    def stop(
        run: SamplingRun,
        step_index: int,
        timestep: float,  # noqa: ARG001  the contract's
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        run.interrupt = step_index == 1
        return {"latents": callback_kwargs["latents"] * 0}

    output = tmp_path / "pictures"
    sample(request(onnx_folder, output, save_steps=(1, 3)), callback_on_step_end=stop)

    assert {"step_01.png", "final.png"} < files(output)
    assert "step_03.png" not in files(output)
    assert not load_file(output / "latents.safetensors")["final"].any()


def test_a_checkpoint_is_sampled_from_by_pytorch(checkpoint: Path, tmp_path: Path) -> None:
    result = sample(request(checkpoint, tmp_path / "pictures", guidance_scale=1.0))
    assert isinstance(result.run["runtime"], dict)
    assert result.run["runtime"]["name"] == "pytorch"


# --- the folder ----------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_not_touched(onnx_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        sample(request(onnx_folder, tmp_path))
    assert files(tmp_path) == {"mine.txt"}


def test_an_existing_folder_is_replaced_as_a_whole_when_asked(
    onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pictures"
    output.mkdir()
    (output / "old.png").write_text("old")
    (output / "run.json").write_text("{}")
    sample(request(onnx_folder, output, overwrite=True))
    assert "old.png" not in files(output)
    assert "final.png" in files(output)
    assert files(tmp_path) == {"pictures"}


def test_a_run_that_fails_leaves_nothing(onnx_folder: Path, tmp_path: Path) -> None:
    def fail(event: StepEvent) -> None:
        raise RuntimeError(f"step {event.index}")

    with pytest.raises(RuntimeError, match="step 0"):
        sample(request(onnx_folder, tmp_path / "pictures"), on_step=fail)
    assert files(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
@pytest.mark.parametrize("name", ["final.png", "latents.safetensors", "run.json"])
def test_a_disk_that_is_full_is_told_whatever_is_written_to_it(
    name: str, onnx_folder: Path, tmp_path: Path
) -> None:
    def fill_the_disk(event: StepEvent) -> None:
        if event.index == 0:
            (partial,) = tmp_path.iterdir()
            (partial / name).symlink_to("/dev/full")

    with pytest.raises(OutputError, match="No space left on device, want room for all of it"):
        sample(request(onnx_folder, tmp_path / "pictures"), on_step=fill_the_disk)
    assert files(tmp_path) == set()


def test_a_run_that_fails_leaves_the_old_folder(onnx_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    output.mkdir()
    (output / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="guidance_scale"):
        sample(request(onnx_folder, output, overwrite=True, guidance_scale=float("nan")))
    assert files(output) == {"run.json"}
    assert files(tmp_path) == {"pictures"}


def test_a_save_step_beyond_the_last_is_refused_first(onnx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 4, want 1 to 3"):
        sample(request(onnx_folder, tmp_path / "pictures", save_steps=(4,)))
    assert files(tmp_path) == set()


def test_a_scheduler_by_name(onnx_folder: Path, tmp_path: Path) -> None:
    heun = SchedulerChoice(name="heun", sigma_spacing="karras")
    result = sample(request(onnx_folder, tmp_path / "pictures", scheduler=heun))
    # Every evaluation of the U-Net is a step; the last is the picture.
    assert list(result.pictures) == [2 * STEPS - 1]
    scheduler = result.run["scheduler"]
    assert isinstance(scheduler, dict)
    assert scheduler["choice"]["name"] == "heun"
    assert len(scheduler["timesteps"]) == 2 * STEPS - 1


def test_noise_of_the_steps_is_the_seeds(onnx_folder: Path, tmp_path: Path) -> None:
    ancestral = SchedulerChoice(name="euler-ancestral")
    first, again, other = (
        sample(request(onnx_folder, tmp_path / name, scheduler=ancestral, seeds=(seed,)))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    digests = [run.run["final_latents_sha256"] for run in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_changed_content_is_found_unless_told_not_to_look(
    onnx_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    path = folder / "vae_encoder" / "config.json"
    path.write_bytes(path.read_bytes().replace(b"sample_size", b"sample_saze"))
    with pytest.raises(BundleError, match=r"vae_encoder/config\.json: content changed"):
        sample(request(folder, tmp_path / "pictures"))
    sample(request(folder, tmp_path / "pictures", verify=False))
    assert "final.png" in files(tmp_path / "pictures")


# --- the engine ----------------------------------------------------------------------------------


def test_engine_is_the_one_that_reads_the_format(
    onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    assert choose_runtime(onnx_bundle, None, RuntimeSettings()).name == "onnxruntime"
    assert choose_runtime(checkpoint_bundle, None, RuntimeSettings()).name == "pytorch"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch", "runtime: got 'pytorch' for a bundle in onnx format, want onnxruntime"),
        ("tensorrt", "runtime: got 'tensorrt', want one of .*onnxruntime"),
    ],
)
def test_engine_that_does_not_fit(onnx_bundle: Bundle, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_runtime(onnx_bundle, name, RuntimeSettings())


# --- noise from a file ---------------------------------------------------------------------------


def gaussian() -> Array:
    return np.random.default_rng(0).standard_normal((1, 4, 8, 9)).astype(np.float32)


@pytest.mark.parametrize("name", ["noise", "latents"])
def test_noise_is_read_from_safetensors(tmp_path: Path, name: str) -> None:
    save_file({name: gaussian(), "final": gaussian() * 0}, tmp_path / "noise.safetensors")
    np.testing.assert_array_equal(read_noise(tmp_path / "noise.safetensors"), gaussian())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_noise_is_read_from_npy_as_float32(tmp_path: Path, dtype: type[np.floating]) -> None:
    np.save(tmp_path / "noise.npy", gaussian().astype(dtype))
    noise = read_noise(tmp_path / "noise.npy")
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise, gaussian().astype(dtype).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_noise_that_is_not_finite(tmp_path: Path, value: float) -> None:
    noise = gaussian()
    noise[0, 1, 2, 3] = value
    np.save(tmp_path / "noise.npy", noise)
    with pytest.raises(BrokenInputError, match="want finite noise"):
        read_noise(tmp_path / "noise.npy")


def test_noise_of_another_rank(tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", gaussian()[0])
    with pytest.raises(BrokenInputError, match=r"got float32 \[4, 8, 9\]"):
        read_noise(tmp_path / "noise.npy")


def test_safetensors_without_noise(tmp_path: Path) -> None:
    save_file({"final": gaussian()}, tmp_path / "noise.safetensors")
    with pytest.raises(BrokenInputError, match="got tensors final, want 'noise' or 'latents'"):
        read_noise(tmp_path / "noise.safetensors")


@pytest.mark.parametrize("name", ["noise.npy", "noise.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not noise", b"PK\x03\x04"])
def test_file_that_is_no_noise(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenInputError, match=name):
        read_noise(tmp_path / name)


@pytest.mark.parametrize("name", ["noise.npy", "noise.safetensors"])
def test_missing_noise(tmp_path: Path, name: str) -> None:
    with pytest.raises(BrokenInputError, match=name):
        read_noise(tmp_path / name)


def test_pickled_noise_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(BrokenInputError, match="noise"):
        read_noise(tmp_path / "noise.npy")


@pytest.mark.slow
def test_a_picture_in_tiles_says_how_far_it_is(onnx_folder: Path, tmp_path: Path) -> None:
    size = {"height_px": 96, "width_px": 160}
    whole = sample(request(onnx_folder, tmp_path / "whole", **size))
    tiled = sample(
        request(onnx_folder, tmp_path / "tiled", vae_tile_px=64, compare_untiled=True, **size)
    )
    assert whole.run["final_latents_sha256"] == tiled.run["final_latents_sha256"]
    assert "vae_tiling" not in whole.run
    told = tiled.run["vae_tiling"]
    assert isinstance(told, dict)
    assert told["tile_px"] == 64
    assert 0 < told["max_abs"] < 2
    apart = tiled.pixels[STEPS].astype(np.float64) - whole.pixels[STEPS]
    assert np.any(apart != 0)
    assert abs(np.abs(apart).max() / 127.5 - told["max_abs"]) < 0.02


def test_tiles_of_no_whole_quarter(onnx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="want a positive multiple of 32"):
        sample(request(onnx_folder, tmp_path / "out", vae_tile_px=40))
    assert not (tmp_path / "out").exists()
