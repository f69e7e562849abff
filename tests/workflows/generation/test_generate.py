"""Whole datasets from a tiny bundle: made at once, in parts, killed and taken up again."""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.errors import BackendError, BlankPictureError, OutputError, UsageError
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.settings import Settings
from triptych.types import ComponentName
from triptych.workflows.generation.generate import (
    NO_PROMPTS,
    GenerateRequest,
    generate,
    plan_generation,
)
from triptych.workflows.generation.ledger import read_ledgers
from triptych.workflows.generation.painter import Painted
from triptych.workflows.generation.plan import PlanRequest
from triptych.workflows.generation.settings_lock import lock_settings
from triptych.workflows.generation.shards import Shard

pytestmark = pytest.mark.slow

STEPS, SAVED = 6, (1, 3, 6)
NUM_IDS, NUM_PROMPTS = 40, 2
SIZE_PX = 64


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 ids of two prompts, one id twice."""
    words = ("a cat", "a red house", "two boats at sea", "an old lighthouse", "fog")
    queries = [
        {
            "reference_img_id": 1000 + number % (NUM_IDS - 1),
            "multi_gpt-3.5_opt": [f"{words[number % 5]} {number}", f"{words[number % 3]}, painted"],
        }
        for number in range(NUM_IDS)
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(queries), encoding="utf-8")
    return path


def request(bundle: Path, prompts: Path, output: Path, **changes: object) -> GenerateRequest:
    usual = GenerateRequest(
        bundle=bundle,
        prompts=prompts,
        output=output,
        pictures=PlanRequest(num_prompts=NUM_PROMPTS, max_inference_steps=STEPS, save_steps=SAVED),
        settings=Settings(prompts=NO_PROMPTS, height_px=SIZE_PX, width_px=SIZE_PX),
        runtime_settings=RuntimeSettings(num_threads=1),
        verify=False,
    )
    own = {name: changes.pop(name) for name in list(changes) if name in PlanRequest.__slots__}
    pictures = replace(usual.pictures, **own)  # type: ignore[arg-type]
    return replace(usual, pictures=pictures, **changes)  # type: ignore[arg-type]


def make(wish: GenerateRequest) -> list[Painted]:
    done: list[Painted] = []

    def report(painted: Painted, *, worker: int) -> None:
        del worker
        done.append(painted)

    generate(plan_generation(wish), report=report)
    return done


def tree(output: Path) -> dict[str, str]:
    """Every file under the step folders, and its hash."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.glob("proxy_images_sdxl_step*/**/*"))
        if path.is_file()
    }


def command(bundle: Path, prompts: Path, output: Path, *more: str) -> list[str]:
    options = {
        "--output": output,
        "--max-inference-steps": STEPS,
        "--save-steps": ",".join(map(str, SAVED)),
        "--num-prompts": NUM_PROMPTS,
        "--height-px": SIZE_PX,
        "--width-px": SIZE_PX,
        "--guidance-scale": 5,
        "--num-threads": 1,
    }
    words = [str(word) for option in options.items() for word in option]
    start = [sys.executable, "-m", "triptych.cli", "generate", str(bundle), str(prompts)]
    return [*start, *words, "--no-verify", *more]


@pytest.fixture(scope="session")
def undisturbed(
    onnx_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, str]:
    """The tree of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "dataset"
    make(request(onnx_folder, prompts, output))
    found = tree(output)
    assert len(found) == NUM_IDS * NUM_PROMPTS * len(SAVED)
    return found


# What is there


def test_names_are_the_seeds(undisturbed: Mapping[str, str]) -> None:
    assert "proxy_images_sdxl_step6/combined/combined_1000_0.jpg" in undisturbed
    # The id of two queries has the pictures of both.
    assert "proxy_images_sdxl_step1/combined/combined_1000_3.jpg" in undisturbed
    assert "proxy_images_sdxl_step1/combined/combined_1001_2.jpg" not in undisturbed


def test_pictures_differ(undisturbed: Mapping[str, str]) -> None:
    assert len(set(undisturbed.values())) == len(undisturbed)


def test_a_run_goes_as_far_as_its_last_file(
    onnx_folder: Path, prompts: Path, tmp_path: Path, undisturbed: Mapping[str, str]
) -> None:
    output = tmp_path / "dataset"
    wish = request(onnx_folder, prompts, output, shard=Shard(index=0, count=20))
    assert [painted.num_steps for painted in make(wish)] == [STEPS] * 4
    step_1, step_3 = (
        output / f"proxy_images_sdxl_step{step}" / "combined" / "combined_1001_0.jpg"
        for step in (1, 3)
    )
    step_1.unlink()
    step_3.write_bytes(step_3.read_bytes()[:-1])
    assert [painted.num_steps for painted in make(wish)] == [3]
    assert make(wish) == []
    assert tree(output).items() <= undisturbed.items()


def test_two_workers_make_what_one_makes(
    onnx_folder: Path, prompts: Path, tmp_path: Path, undisturbed: Mapping[str, str]
) -> None:
    make(request(onnx_folder, prompts, tmp_path / "dataset", num_workers=2))
    assert tree(tmp_path / "dataset") == undisturbed


def test_every_image_of_a_prompt_is_saved(onnx_folder: Path, prompts: Path, tmp_path: Path) -> None:
    wish = request(
        onnx_folder,
        prompts,
        tmp_path / "dataset",
        num_prompts=1,
        images_per_prompt=3,
        save_steps=(6,),
        shard=Shard(index=1, count=40),
    )
    make(wish)
    found = tree(tmp_path / "dataset")
    combined = "proxy_images_sdxl_step6/combined"
    assert list(found) == [f"{combined}/combined_1001_{n}.jpg" for n in range(3)]
    assert len(set(found.values())) == 3


def test_linear_previews_instead_of_pictures(
    onnx_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    wish = request(onnx_folder, prompts, tmp_path / "dataset", shard=Shard(index=0, count=40))
    make(replace(wish, saved_by="linear"))
    path = next(iter(tree(tmp_path / "dataset")))
    with Image.open(tmp_path / "dataset" / path) as picture:
        assert picture.size == (SIZE_PX // 8, SIZE_PX // 8)


# What ends a run


@contextmanager
def watched(output: Path) -> Iterator[list[str]]:
    """A watcher that opens every file it sees in the picture folders, as readers do."""
    broken: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        seen: set[Path] = set()
        while not ended.is_set():
            for path in set(output.glob("proxy_images_sdxl_step*/combined/*")) - seen:
                seen.add(path)
                try:
                    with Image.open(path) as picture:
                        picture.load()
                except OSError as error:
                    broken.append(f"{path.name}: {error}")
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield broken
    finally:
        ended.set()
        thread.join()


def wait_for_files(output: Path, *, count: int, process: "subprocess.Popen[str]") -> None:
    """Until so many files are there, or the process has ended."""
    while process.poll() is None and len(pictures(output)) < count:
        time.sleep(0.002)


def pictures(output: Path) -> list[Path]:
    return list(output.glob("proxy_images_sdxl_step*/combined/*"))


def test_killed_twenty_times_and_taken_up_again(
    onnx_folder: Path, prompts: Path, tmp_path: Path, undisturbed: Mapping[str, str]
) -> None:
    output = tmp_path / "dataset"
    moments = np.random.default_rng(0)
    counts = [0]
    with watched(output) as broken:
        for attempt in range(20):
            process = subprocess.Popen(
                command(onnx_folder, prompts, output), stderr=subprocess.PIPE, text=True
            )
            if attempt % 5:  # at work: a few files on, and a moment into the next
                more = int(moments.integers(1, 6))
                wait_for_files(output, count=counts[-1] + more, process=process)
                time.sleep(moments.uniform(0, 0.05))
            else:  # while it starts, plans and opens its model
                time.sleep(moments.uniform(0, 2))
            process.kill()
            _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert "Traceback" not in errors
            counts.append(len(pictures(output)))
        ended = subprocess.run(command(onnx_folder, prompts, output), check=False)
    assert ended.returncode == 0
    assert not broken
    assert counts == sorted(counts)
    assert len(set(counts)) > 10
    assert counts[-1] < len(undisturbed)
    assert tree(output) == undisturbed
    assert not list((output / ".partial").glob("*/*.jpg"))
    recorded = read_ledgers(output).by_path
    assert {path: recorded[path][0].sha256 for path in undisturbed} == dict(undisturbed)


def test_two_shards_at_once(
    onnx_folder: Path, prompts: Path, tmp_path: Path, undisturbed: Mapping[str, str]
) -> None:
    output = tmp_path / "dataset"
    with watched(output) as broken:
        processes = [
            subprocess.Popen(command(onnx_folder, prompts, output, "--shard", f"{index}/2"))
            for index in range(2)
        ]
        assert [process.wait() for process in processes] == [0, 0]
    assert not broken
    assert tree(output) == undisturbed


def test_a_worker_that_is_killed_ends_in_a_tree_that_resumes(
    onnx_folder: Path, prompts: Path, tmp_path: Path, undisturbed: Mapping[str, str]
) -> None:
    output = tmp_path / "dataset"
    generation = plan_generation(request(onnx_folder, prompts, output, num_workers=2))
    killed: list[int] = []

    def kill_one(painted: Painted, *, worker: int) -> None:
        del painted, worker
        if not killed:
            [child, *_] = multiprocessing.active_children()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            killed.append(child.pid)

    with pytest.raises(BackendError, match="give the same command again"):
        generate(generation, report=kill_one)
    assert 0 < len(tree(output)) < len(undisturbed)
    make(request(onnx_folder, prompts, output))
    assert tree(output) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root and tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def test_a_full_disk_ends_in_a_tree_that_resumes(
    onnx_folder: Path,
    prompts: Path,
    small_disk: Path,
    tmp_path: Path,
    undisturbed: Mapping[str, str],
) -> None:
    with pytest.raises(OutputError, match="Make room on the disk"):
        make(request(onnx_folder, prompts, small_disk))
    there = tree(small_disk)
    assert 0 < len(there) < len(undisturbed)
    assert there.items() <= undisturbed.items()
    moved = tmp_path / "moved"
    shutil.copytree(small_disk, moved)
    again = make(request(onnx_folder, prompts, moved))
    assert sum(len(painted.work.reasons) for painted in again) == len(undisturbed) - len(there)
    assert tree(moved) == undisturbed


def test_a_model_that_gives_one_colour_ends_the_run(
    checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    spoilt = tmp_path / "spoilt"
    shutil.copytree(checkpoint, spoilt)
    weights = spoilt / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.weight"][:] = 0
    save_file(tensors, weights)
    for num_workers in (1, 2):
        with pytest.raises(BlankPictureError, match="one colour"):
            make(request(spoilt, prompts, tmp_path / "dataset", num_workers=num_workers))
    assert tree(tmp_path / "dataset") == {}


def test_prompts_that_are_kept_open_no_text_encoder(
    onnx_folder: Path,
    prompts: Path,
    tmp_path: Path,
    opened: list[ComponentName],
    undisturbed: Mapping[str, str],
) -> None:
    wish = request(
        onnx_folder,
        prompts,
        tmp_path / "one",
        prompt_cache=tmp_path / "cache",
        shard=Shard(index=0, count=20),
    )
    make(wish)
    assert sorted(opened) == ["text_encoder", "text_encoder_2", "unet", "vae_decoder"]
    del opened[:]
    again = replace(wish, output=tmp_path / "two", keep_loaded=False)
    make(again)
    assert sorted(opened) == ["unet", "vae_decoder"]
    del opened[:]
    make(replace(again, output=tmp_path / "three", prompt_cache=None))
    assert opened.count("text_encoder") >= len(list((tmp_path / "cache").iterdir())) > 1
    assert opened.count("unet") == 1
    for name in ("one", "two", "three"):
        made = tree(tmp_path / name)
        assert made
        assert made.items() <= undisturbed.items()


# A cluster: a real one on this machine, in a process of its own. Ray looks for clusters among all
# processes, so its tests stand in this file alone, which `make test` gives to one worker.


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or sys.platform != "linux",
    reason="needs Ray, and finds its actors in /proc",
)
PROGRAM = Path(__file__).with_name("ray_cluster.py")


def environment(home: Path) -> dict[str, str]:
    """Ray keeps a token in the home folder, and reports its use unless it is told not to."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **quiet, "HOME": str(home), "OMP_NUM_THREADS": "1"}


@needs_ray
def test_a_worker_is_killed_and_the_dataset_is_whole(
    onnx_folder: Path, prompts: Path, tmp_path: Path, undisturbed: Mapping[str, str]
) -> None:
    output = tmp_path / "dataset"
    ended = subprocess.run(
        [sys.executable, PROGRAM, onnx_folder, prompts, output],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    killed, pictures, workers = (int(word) for word in ended.stdout.split()[-3:])
    assert (killed, workers) == (1, 2)
    assert pictures == 80
    assert tree(output) == undisturbed


@needs_ray
def test_no_cluster(onnx_folder: Path, prompts: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        command(onnx_folder, prompts, tmp_path / "dataset", "--executor", "ray"),
        env={**environment(tmp_path), "RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 4
    assert "got no cluster, want one" in ended.stderr


# Other settings


def test_other_settings_are_refused_until_they_are_meant(
    onnx_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "dataset"
    wish = request(onnx_folder, prompts, output, shard=Shard(index=0, count=40))
    make(wish)
    before = tree(output)
    other = replace(wish, settings=replace(wish.settings, guidance_scale=3.0))
    with pytest.raises(UsageError, match="guidance_scale: got 3, want 5"):
        plan_generation(other)
    assert tree(output) == before
    make(replace(other, overwrite=True))
    after = tree(output)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    with pytest.raises(UsageError, match="guidance_scale: got 5, want 3"):
        plan_generation(wish)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"guidance_interval": (0.0, 0.5)}, r"guidance_interval: got \[0, 0.5\], want \[0, 1\]"),
        ({"guidance_mode": "split"}, "guidance_mode"),
        ({"guidance_rescale": 0.5}, "guidance_rescale"),
        ({"sizes": MicroConditioning(crop=(8, 8))}, "micro_conditioning.crop"),
        ({"height_px": 72}, "height_px: got 72, want 64"),
    ],
)
def test_every_setting_that_changes_pictures_is_locked(
    changes: dict[str, object], told: str, onnx_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    wish = request(onnx_folder, prompts, tmp_path)
    lock_settings(tmp_path, plan_generation(wish).locked)
    other = replace(wish, settings=replace(wish.settings, **changes))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=told):
        plan_generation(other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_workers": 0}, "want at least 1"),
        ({"save_steps": (1, 7)}, "got 7, want 1 to 6"),
        ({"quality": 0}, "want 1 to 100"),
        ({"settings": Settings(prompts=NO_PROMPTS, height_px=63)}, "multiple of 8"),
        ({"settings": Settings(prompts=NO_PROMPTS, num_images_per_prompt=2)}, "one run from noise"),
        ({"settings": Settings(prompts=NO_PROMPTS, denoising_end=0.5)}, "got denoising_end"),
        ({"settings": Settings(prompts=NO_PROMPTS, guidance_rescale=2.0)}, "want 0 to 1"),
    ],
)
def test_wishes_that_cannot_be(
    changes: dict[str, object], told: str, onnx_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        plan_generation(request(onnx_folder, prompts, tmp_path / "dataset", **changes))
    assert not (tmp_path / "dataset").exists()


def test_schedulers_of_more_evaluations_than_steps(
    onnx_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    from triptych.sampling.schedulers import SchedulerChoice

    settings = Settings(prompts=NO_PROMPTS, scheduler=SchedulerChoice(name="heun"))
    with pytest.raises(UsageError, match="11 evaluations for 6 steps"):
        plan_generation(request(onnx_folder, prompts, tmp_path / "dataset", settings=settings))
