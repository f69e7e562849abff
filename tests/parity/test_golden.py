"""Recordings as folders: what is read is what was recorded, and damage is named."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import GoldenError, UsageError
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.floors import Floor
from triptych.parity.golden import TENSORS_FILE, is_golden, read_golden, write_golden
from triptych.parity.golden_manifest import MANIFEST_FILE, read_golden_manifest
from triptych.parity.golden_run import RunEntry, run_entry_from_settings, settings_from_run_entry
from triptych.parity.record import RecordingOptions, default_settings, record
from triptych.parity.recording import Recording
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.prompt_embeddings import PromptEmbeddings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import EdmDiscretization, SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.testing.tiny import TinyKind, tiny_checkpoint

ONE_THREAD = RuntimeSettings(num_threads=1)
FLOOR = Floor(
    arithmetic="fp16",
    stage="component",
    component="unet",
    case="t=1",
    tensor="noise_pred",
    branch="conditional",
    step=None,
    rel_l2=1.2345e-3,
)


def record_tiny(bundle: Bundle, **changes: object) -> Recording:
    usual = default_settings(bundle.config, num_inference_steps=2)
    start = {} if usual.start else {"height_px": 64, "width_px": 72}
    wanted = replace(usual, **{**start, **changes})  # type: ignore[arg-type]  # names of fields
    return record(
        bundle,
        make_runtime("pytorch", ONE_THREAD),
        wanted,
        options=RecordingOptions(pictures=True),
        report=lambda _: None,
    )


@pytest.fixture(scope="module")
def recording(checkpoint_bundle: Bundle) -> Recording:
    return replace(record_tiny(checkpoint_bundle), floors=(FLOOR,))


@pytest.fixture
def golden(recording: Recording, tmp_path: Path) -> Path:
    folder = tmp_path / "golden"
    write_golden(recording, folder, profile="quick", command=("triptych", "record"))
    return folder


def assert_same(actual: object, expected: object, where: str = "recording") -> None:
    """Equal in every field, arrays bit for bit."""
    if isinstance(expected, np.ndarray):
        assert isinstance(actual, np.ndarray), where
        assert actual.dtype == expected.dtype, where
        np.testing.assert_array_equal(actual, expected, err_msg=where)
    elif dataclasses.is_dataclass(expected):
        assert type(actual) is type(expected), where
        for field in dataclasses.fields(expected):
            if field.compare:
                one, other = (getattr(side, field.name) for side in (actual, expected))
                assert_same(one, other, f"{where}.{field.name}")
    elif isinstance(expected, dict):
        assert isinstance(actual, dict), where
        assert list(actual) == list(expected), where
        for name, value in expected.items():
            assert_same(actual[name], value, f"{where}[{name!r}]")
    elif isinstance(expected, tuple | list):
        assert isinstance(actual, tuple | list), where
        assert len(actual) == len(expected), where
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert actual == expected, where


def test_what_is_read_is_what_was_recorded(recording: Recording, golden: Path) -> None:
    assert is_golden(golden)
    assert_same(read_golden(golden), recording)
    manifest = read_golden_manifest(golden)
    assert manifest.command == ("triptych", "record")
    assert manifest.profile == "quick"


def test_a_golden_is_two_files_without_weights_or_pickles(golden: Path) -> None:
    assert {path.name for path in golden.iterdir()} == {MANIFEST_FILE, TENSORS_FILE}
    size = sum(path.stat().st_size for path in golden.iterdir())
    assert size < 1_000_000
    stored = load_file(golden / TENSORS_FILE)
    kinds = {name.partition("/")[0] for name in stored}
    assert kinds == {"noise", "image", "conditioning", "latents", "noise_pred", "picture", "case"}


def test_equal_tensors_are_stored_once(golden: Path) -> None:
    manifest = read_golden_manifest(golden)
    hashes = {entry.sha256 for entry in manifest.tensors.values()}
    assert len(load_file(golden / TENSORS_FILE)) == len(hashes) < len(manifest.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refiner", "inpaint"])
def test_runs_that_start_from_something_are_kept_too(kind: TinyKind, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_checkpoint(tmp_path / kind, kind=kind))
    recording = record_tiny(bundle)
    write_golden(recording, tmp_path / "golden", profile="quick")
    found = read_golden(tmp_path / "golden")
    assert_same(found, recording)
    candidate = Candidate(
        bundle=bundle,
        runtime=make_runtime("pytorch", ONE_THREAD),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
    )
    report = check(found, candidate, report=lambda _: None).report
    assert report.verdict == "passed"
    assert {row.rel_l2 for row in report.rows if row.has_numbers} == {0}


@pytest.mark.slow
def test_noise_that_steps_add_goes_on_where_the_recording_s_did(
    checkpoint_bundle: Bundle, tmp_path: Path
) -> None:
    """A candidate starts from the noise itself, and must draw what follows it."""
    recording = record_tiny(checkpoint_bundle, scheduler=SchedulerChoice(name="euler-ancestral"))
    write_golden(recording, tmp_path / "golden", profile="quick")
    candidate = Candidate(
        bundle=checkpoint_bundle,
        runtime=make_runtime("pytorch", ONE_THREAD),
        precisions=dict.fromkeys(checkpoint_bundle.artifacts, "fp32"),
    )
    report = check(read_golden(tmp_path / "golden"), candidate, report=lambda _: None).report
    assert {row.rel_l2 for row in report.rows if row.stage == "free_running"} == {0}


# --- damage --------------------------------------------------------------------------------------


def flip(folder: Path) -> None:
    tensors = load_file(folder / TENSORS_FILE)
    name = "latents/1"
    changed = tensors[name].copy()
    changed.flat[0] = np.nextafter(changed.flat[0], 9)
    save_file({**tensors, name: changed}, folder / TENSORS_FILE)


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / TENSORS_FILE)
    del tensors["noise_pred/2"]
    save_file(tensors, folder / TENSORS_FILE)


def lose_an_entry(folder: Path) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    del content["tensors"]["noise_pred/2"]
    (folder / MANIFEST_FILE).write_text(json.dumps(content), encoding="utf-8")


def newer(folder: Path) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    (folder / MANIFEST_FILE).write_text(
        json.dumps({**content, "schema_version": 99}), encoding="utf-8"
    )


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-100])

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, r"'latents/1': got other content than its hash promises"),
        (lose_a_tensor, r"'noise_pred/2': got nothing, want float32 \[1, 4, 8, 9\]"),
        (lose_an_entry, "got no tensor 'noise_pred/2'"),
        (newer, "got schema version 99, want 1 or older"),
        (cut(TENSORS_FILE), "want the golden's tensors"),
        (cut(MANIFEST_FILE), "want a golden's manifest"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "No such file"),
    ],
)
def test_damage_is_named(golden: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(golden)
    with pytest.raises(GoldenError, match=told):
        read_golden(golden)


def test_a_golden_is_not_replaced_unasked(recording: Recording, golden: Path) -> None:
    before = (golden / TENSORS_FILE).read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        write_golden(recording, golden, profile="quick")
    write_golden(recording, golden, profile="full", overwrite=True)
    assert read_golden_manifest(golden).profile == "full"
    assert (golden / TENSORS_FILE).read_bytes() == before


# --- settings ------------------------------------------------------------------------------------

NUMBERS = st.floats(min_value=0, max_value=10, allow_nan=False)
SIZES = st.none() | st.tuples(st.integers(0, 2048), st.integers(0, 2048))


PROMPTS = st.fixed_dictionaries(
    {
        "prompt": st.tuples(st.text()),
        "prompt_2": st.none() | st.tuples(st.text()),
        "negative_prompt": st.none() | st.tuples(st.text()),
        "clip_skip": st.integers(0, 3),
    }
)
SCHEDULERS = st.fixed_dictionaries(
    {
        "name": st.none() | st.text(),
        "sigma_spacing": st.sampled_from([None, "karras"]),
        "timesteps": st.lists(NUMBERS).map(tuple),
        "eta": NUMBERS,
    }
)
OTHERS = st.fixed_dictionaries(
    {
        "num_inference_steps": st.integers(1, 99),
        "guidance_scale": NUMBERS,
        "guidance_mode": st.sampled_from(["batched", "split"]),
        "guidance_rescale": NUMBERS,
        "guidance_interval": st.tuples(NUMBERS, NUMBERS),
        "height_px": st.none() | st.integers(8, 2048),
        "width_px": st.none() | st.integers(8, 2048),
        "seeds": st.lists(st.integers(0, 2**63 - 1), min_size=1).map(tuple),
        "denoising_end": st.none() | NUMBERS,
    }
)


@given(prompts=PROMPTS, scheduler=SCHEDULERS, original_size=SIZES, others=OTHERS)
def test_settings_come_back(
    prompts: Mapping[str, object],
    scheduler: Mapping[str, object],
    original_size: tuple[int, int] | None,
    others: Mapping[str, object],
) -> None:
    wanted = Settings(
        prompts=Prompts(**prompts),  # type: ignore[arg-type]  # drawn by the names of fields
        scheduler=SchedulerChoice(**scheduler),  # type: ignore[arg-type]
        sizes=MicroConditioning(original_size=original_size),
        **others,  # type: ignore[arg-type]
    )
    written = msgspec.json.encode(run_entry_from_settings(wanted))
    entry = msgspec.json.decode(written, type=RunEntry)
    assert settings_from_run_entry(entry, start={}) == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        Settings(
            prompts=PromptEmbeddings(
                prompt_embeds=np.zeros((1, 77, 80), np.float32),
                pooled_prompt_embeds=np.zeros((1, 64), np.float32),
            )
        ),
        Settings(
            prompts=Prompts(prompt=("a",)),
            scheduler=SchedulerChoice(discretization=EdmDiscretization()),
        ),
    ],
)
def test_runs_that_a_file_cannot_repeat_are_refused(wanted: Settings) -> None:
    with pytest.raises(UsageError, match="want prompts and a scheduler by name"):
        run_entry_from_settings(wanted)


def test_floors_that_are_no_numbers_are_not_written(recording: Recording) -> None:
    assert all(math.isfinite(floor.rel_l2) for floor in recording.floors)
