import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.errors import OutputError, UsageError
from triptych.workflows.generation.clean import clean, find_removals
from triptych.workflows.generation.partial import open_partial
from triptych.workflows.generation.settings_lock import lock_settings


def names(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


@pytest.fixture
def dataset(save: Callable[..., Path]) -> Path:
    """Two steps, their settings, what readers have computed, and what is somebody's own."""
    output = save(1, 4)
    lock_settings(output, {"guidance_scale": 7.5})
    own = ["notes.txt", "ledger.txt", "proxy_images_sdxl_step1_backup/a.jpg", "my.npz"]
    caches = [
        "aug_features_clip.npz",
        "proxy_images_sdxl_step1/aug_features_clip.npz",
        "proxy_images_sdxl_step4/aug_features_clip.npz",
    ]
    for name in (*own, *caches):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    return output


OWN = {"notes.txt", "ledger.txt", "proxy_images_sdxl_step1_backup/a.jpg", "my.npz"}


def test_everything_that_was_made_goes_and_nothing_else(dataset: Path) -> None:
    before = names(dataset)
    removals = find_removals(dataset)
    assert names(dataset) == before
    assert clean(dataset) == removals
    assert names(dataset) == OWN
    assert {path.name for path in dataset.iterdir()} == {
        "notes.txt",
        "ledger.txt",
        "my.npz",
        "proxy_images_sdxl_step1_backup",
    }
    assert clean(dataset) == ()


def test_the_list_names_all_that_goes(dataset: Path) -> None:
    listed = {path.relative_to(dataset).as_posix() for path in find_removals(dataset)}
    ledgers = {name for name in listed if name.startswith("ledger/")}
    assert len(ledgers) == 1
    assert listed - ledgers == {
        "aug_features_clip.npz",
        "proxy_images_sdxl_step1/aug_features_clip.npz",
        "proxy_images_sdxl_step4/aug_features_clip.npz",
        "proxy_images_sdxl_step1",
        "proxy_images_sdxl_step4",
        "generation.json",
    }


def test_one_step_goes_with_the_caches_that_may_be_of_it(dataset: Path) -> None:
    before = names(dataset)
    clean(dataset, steps=[1])
    assert before - names(dataset) == {
        *(name for name in before if name.startswith("proxy_images_sdxl_step1/")),
        "aug_features_clip.npz",
    }


def test_the_ledgers_go_with_the_last_step(dataset: Path) -> None:
    clean(dataset, steps=[1])
    assert (dataset / "generation.json").exists()
    clean(dataset, steps=[4, 99])
    assert names(dataset) == OWN


def test_a_step_that_is_not_there_is_nothing_to_do(dataset: Path) -> None:
    before = names(dataset)
    clean(dataset, steps=[2])
    assert before - names(dataset) == {"aug_features_clip.npz"}


def test_a_folder_that_is_not_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert find_removals(tmp_path / "no") == ()
    assert clean(tmp_path / "no") == ()
    assert list(tmp_path.iterdir()) == []


def test_nobodys_pictures_are_taken_from_under_a_writer(dataset: Path) -> None:
    before = names(dataset)
    with (
        open_partial(dataset) as folder,
        pytest.raises(UsageError, match=f"at work.*{folder.name}.*Stop them"),
    ):
        clean(dataset)
    assert names(dataset) == before


@pytest.mark.slow
def test_what_a_killed_writer_has_left_goes_too(dataset: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from triptych.workflows.generation.partial import open_partial\n"
        "with open_partial(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(dataset)], check=False)
    assert (dataset / ".partial").exists()
    clean(dataset)
    assert names(dataset) == OWN
    assert not (dataset / ".partial").exists()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_of_a_link_only_the_link_goes(dataset: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(dataset / "proxy_images_sdxl_step4", elsewhere)
    (dataset / "proxy_images_sdxl_step4").symlink_to(elsewhere, target_is_directory=True)
    before = names(elsewhere) - {"aug_features_clip.npz"}
    clean(dataset)
    assert names(dataset) == OWN
    assert names(elsewhere) == before


def test_what_cannot_be_removed_is_told(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OutputError, match=r"step1: got Permission denied"):
        clean(dataset)
