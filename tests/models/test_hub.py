import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from triptych.bundle.bundle import open_bundle
from triptych.errors import CheckpointError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.hub import cache_folder, find_snapshot, is_repo_id, local_path, model_name
from triptych.workflows.download import fetch_model, file_patterns
from triptych.workflows.inspect import inspect_path

REPO_ID = "an-organisation/tiny-xl_1.0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint as it lies in a hub's cache."""
    cache = tmp_path / "hub"
    folder = cache / "models--an-organisation--tiny-xl_1.0"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).symlink_to(checkpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return folder / "snapshots" / COMMIT


def test_an_id_leads_where_huggingface_hub_goes(cached: Path) -> None:
    expected = snapshot_download(REPO_ID, cache_dir=cache_folder(), local_files_only=True)
    assert find_snapshot(REPO_ID) == cached == Path(expected)
    assert model_name(cached) == REPO_ID


def test_every_command_takes_an_id_for_a_path(cached: Path) -> None:
    path = Path(REPO_ID)
    assert open_checkpoint(path).folder == cached
    assert open_bundle(path).folder == cached
    assert not inspect_path(path).problems


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b"}, "/b"),
        ({"HF_HOME": "/c"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/c"}, "/a"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "/c"}, "/c/hub"),
        ({"HOME": "/e"}, "/e/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_a_path_that_exists_is_no_id(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / REPO_ID).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_path(Path(REPO_ID)) == Path(REPO_ID)
    assert cached.exists()


def test_an_id_that_is_not_there_is_told_how_to_fetch_it(cached: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(Path("an-organisation/another"))
    message = str(caught.value)
    assert str(cache_folder()) in message
    assert "--download" in message
    assert cached.exists()


@pytest.mark.parametrize("broken", ["refs/main", "snapshots"])
def test_a_snapshot_that_is_not_whole_is_none(broken: str, cached: Path) -> None:
    path = cached.parents[1] / broken
    path.rename(path.with_name("moved"))
    assert find_snapshot(REPO_ID) is None


@pytest.mark.parametrize(
    "text", ["name", "/a/b", "a/b/c", "../b", "a/..", "./b", "a--b/c", "a b/c", "a/b.", ""]
)
def test_most_paths_could_be_no_id(text: str) -> None:
    assert not is_repo_id(text)


FILES_ON_THE_HUB = (
    *("README.md", "model_index.json", "sd_xl_base_1.0.safetensors"),
    *("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer_2/merges.txt"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.onnx"),
    *("text_encoder/model.fp16.safetensors", "text_encoder/flax_model.msgpack"),
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/model.onnx_data"),
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    *("unet/diffusion_pytorch_model.fp16.safetensors", "vae_1_0/config.json"),
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    *("unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors"),
)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_what_is_read_is_fetched(
    variant: str | None, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert fetch_model(REPO_ID, variant=variant) == cached
    [(repo_id, patterns)] = asked
    fetched = {
        name
        for name in FILES_ON_THE_HUB
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }
    weights = {name for name in fetched if name.endswith(".safetensors")}
    assert repo_id == REPO_ID
    assert weights == {
        name
        for name in FILES_ON_THE_HUB
        if name.endswith(".safetensors") and "/" in name and (".fp16" in name) == bool(variant)
    }
    configs = {name for name in FILES_ON_THE_HUB if name.endswith((".json", ".txt"))}
    assert configs - fetched <= {"unet/diffusion_pytorch_model.safetensors.index.json"}
    assert fetched == weights | (fetched & configs)


def test_what_cannot_be_fetched_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="no route to host"):
        fetch_model(REPO_ID, variant=None)


def test_patterns_of_a_variant_leave_the_plain_weights_out() -> None:
    assert not {"model.safetensors", "*/model.safetensors"} & set(file_patterns("fp16"))
