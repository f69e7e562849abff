"""Fetching a model from the Hugging Face hub, when asked: the only place that uses the network."""

from pathlib import Path

from triptych.dependencies import import_optional
from triptych.errors import CheckpointError

_CONFIGS = ("model_index.json", "config.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*")
_STEMS = ("model", "diffusion_pytorch_model")
_LORAS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")


def file_patterns(variant: str | None) -> tuple[str, ...]:
    """What to fetch of a model: configs, tokenizers, and safetensors of one variant alone.

    Models' repositories also have pickles, other formats and single files: tens of gigabytes.
    """
    middle = f".{variant}" if variant else ""
    weights = [
        name
        for stem in _STEMS
        for name in (
            f"{stem}{middle}.safetensors",
            f"{stem}{middle}-?????-of-?????.safetensors",
            f"{stem}-?????-of-?????{middle}.safetensors",
            f"{stem}{middle}.safetensors.index.json",
            f"{stem}.safetensors.index{middle}.json",
        )
    ]
    anywhere = ("config.json", *weights)
    return (*_CONFIGS, *_LORAS, *anywhere, *(f"*/{name}" for name in anywhere))


def fetch_model(repo_id: str, *, variant: str | None) -> Path:
    """Fetch a model into this machine's cache of the hub, as far as it is not there.

    Args:
        repo_id: `organisation/name`.
        variant: of its weights.

    Returns:
        Its folder in the cache.

    Raises:
        CheckpointError: it could not be fetched.
        MissingDependencyError: the export extra is not installed.
    """
    hub = import_optional("huggingface_hub", extra="export")
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=list(file_patterns(variant))))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are of these
        raise CheckpointError(
            f"{repo_id}: got {error}, want to fetch it from the hub. Is the id right, and the "
            "network there?"
        ) from error
