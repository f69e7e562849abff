"""Models by their id on the Hugging Face hub, in this machine's cache of it. Nothing is fetched.

Source:
    huggingface_hub 0.36 constants.py and file_download.py, repo_folder_name; its documentation,
    "Understand caching".
"""

import os
import re
from pathlib import Path

from triptych.errors import CheckpointError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[\w-]")


def is_repo_id(text: str) -> bool:
    """Whether a text could be a model's id on the hub: `organisation/name`."""
    return _REPO_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetched: HF_HUB_CACHE, or hub/ in HF_HOME."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(above).expanduser() / "huggingface" / "hub"


def find_snapshot(repo_id: str) -> Path | None:
    """The folder of a model's main branch in the cache; None where it is not there."""
    folder = cache_folder() / f"models--{repo_id.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def model_name(path: Path) -> str:
    """A model's id where a path is its folder in a cache, else the path's own name."""
    found = re.fullmatch(r"models--(.+?)--(.+)", path.absolute().parent.parent.name)
    in_cache = found is not None and path.absolute().parent.name == "snapshots"
    return f"{found[1]}/{found[2]}" if found and in_cache else path.resolve().name


def local_path(path: Path) -> Path:
    """A path as it is where it exists; for a model's id, its folder in the cache.

    Raises:
        CheckpointError: it could be an id, and is not in the cache.
    """
    name = path.as_posix()
    if path.exists() or not is_repo_id(name):
        return path
    snapshot = find_snapshot(name)
    if snapshot is None:
        raise CheckpointError(
            f"{name}: got neither a path that exists nor a model in {cache_folder()}, want one of "
            f"them. To fetch it: triptych compose {name} OUT --download, or hf download {name}"
        )
    return snapshot
