"""What a composed checkpoint begins as: a folder in diffusers layout, or a single file."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

from triptych.errors import CheckpointError, UsageError
from triptych.models.checkpoint import NETWORK_FOLDERS, open_checkpoint
from triptych.models.composition import Source
from triptych.models.configs import JsonObject, read_json
from triptych.models.hub import cache_folder, find_snapshot, is_repo_id, local_path
from triptych.models.single_file import SingleFile, read_single_file
from triptych.models.single_file_configs import model_index, network_configs, scheduler_config
from triptych.models.stored_tensor import StoredTensor
from triptych.models.tokenizer_files import read_vocabulary
from triptych.workflows.download import fetch_model

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_VOCABULARY_FILES = ("vocab.json", "merges.txt")
_SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
_CLIP_ID = "openai/clip-vit-large-patch14"

Networks: TypeAlias = dict[str, Mapping[str, StoredTensor]]
"""The weights in each network's folder, by diffusers' names."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A source, and the folder or file that its weights lie in."""

    source: Source
    root: Path


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something is, and what people call it.

    Attributes:
        path: absolute.
        name: its file's or folder's name, or its id on the hub.
    """

    path: Path
    name: str

    def part(self, source: Source) -> Part:
        """A source whose weights lie here."""
        return Part(source=source, root=self.path)


def find_place(path: Path, *, variant: str | None, download: bool) -> Place:
    """Where a path, or a model's id on the hub, leads.

    Args:
        path: a path, or an id.
        variant: of the weights to fetch.
        download: fetch a model that is named by its id, as far as the cache has it not.

    Raises:
        CheckpointError: there is no such path, and no such model in the cache, or it could not be
            fetched.
    """
    name = path.as_posix()
    if path.exists() or not is_repo_id(name):
        return Place(path=path.absolute(), name=path.absolute().name)
    found = fetch_model(name, variant=variant) if download else local_path(path)
    return Place(path=found.absolute(), name=name)


def lay_out(
    checkpoint: Place,
    folder: Path,
    networks: Networks,
    *,
    variant: str | None,
    config: Place | None,
) -> list[Part]:
    """Write a checkpoint's configs, tokenizers and scheduler, and note where its weights lie.

    Args:
        checkpoint: a folder in diffusers layout, or a single file.
        folder: gets the files.
        networks: gets the weights.
        variant: of a checkpoint's folder.
        config: a folder with the configs and tokenizers of a single file.

    Raises:
        CheckpointError: it is not whole, or its tokenizers are not found.
        UsageError: a variant of a single file, or configs of a folder.
    """
    if not checkpoint.path.is_file():
        if config is not None:
            raise UsageError(
                f"config: got {config.name} for the folder {checkpoint.name}, want none: it has "
                "its own."
            )
        return [_lay_out_folder(checkpoint, folder, networks, variant=variant)]
    if variant is not None:
        raise UsageError(f"variant: got {variant!r} of a single file, want none: it has no others.")
    single = read_single_file(checkpoint.path)
    networks.update(single.networks)
    parts = [checkpoint.part(Source(role="checkpoint", name=checkpoint.name))]
    if config is None:
        _write_inferred(single, folder)
        _write_cached_tokenizers(single, folder)
    else:
        _copy_configs(single, config.path, folder)
        parts.append(config.part(Source(role="config", name=config.name)))
    _check_vocabularies(single, folder)
    return parts


def _lay_out_folder(
    checkpoint: Place, folder: Path, networks: Networks, *, variant: str | None
) -> Part:
    base = open_checkpoint(checkpoint.path, variant=variant)
    if base.composition is not None:
        raise CheckpointError(
            f"{base.folder}: got a composed checkpoint, want one in diffusers layout or a single "
            "file. Compose everything at once."
        )
    index = {"_name_or_path": checkpoint.name, **read_json(base.folder / "model_index.json")}
    _write_json(index, folder / "model_index.json")
    for component in base.config.components:
        network = NETWORK_FOLDERS[component]
        if network not in networks:
            (folder / network).mkdir()
            shutil.copy(base.component_folder(component) / "config.json", folder / network)
            networks[network] = base.network_tensors(network)
    for name in ("scheduler", *TOKENIZERS.values()):
        if (base.folder / name).is_dir():
            shutil.copytree(base.folder / name, folder / name)
    return checkpoint.part(Source(role="checkpoint", name=checkpoint.name))


def _write_inferred(single: SingleFile, folder: Path) -> None:
    """The configs as shapes tell them and SDXL was published."""
    _write_json(model_index(single), folder / "model_index.json")
    for network, settings in network_configs(single).items():
        _write_json(settings, folder / network / "config.json")
    _write_json(scheduler_config(single), folder / "scheduler" / "scheduler_config.json")


def _copy_configs(single: SingleFile, config: Path, folder: Path) -> None:
    """The configs and tokenizers of a folder in diffusers layout."""
    index = {**read_json(config / "model_index.json"), "_name_or_path": single.path.stem}
    _write_json(index, folder / "model_index.json")
    for network in single.networks:
        _write_json(read_json(config / network / "config.json"), folder / network / "config.json")
    schedule = read_json(config / "scheduler" / "scheduler_config.json")
    _write_json(scheduler_config(single, schedule), folder / "scheduler" / "scheduler_config.json")
    for network, name in TOKENIZERS.items():
        if network in single.networks:
            if not (config / name).is_dir():
                raise CheckpointError(f"{config}: got no {name}, want the tokenizer of {network}.")
            shutil.copytree(config / name, folder / name)


def _write_cached_tokenizers(single: SingleFile, folder: Path) -> None:
    """CLIP's tokenizers from this machine's cache of the hub; all of SDXL's models share them."""
    snapshots = [find_snapshot(repo_id) for repo_id in (_SDXL_ID, _CLIP_ID)]
    folders = [
        path
        for path in (snapshots[0] and snapshots[0] / "tokenizer", snapshots[1])
        if path and all((path / name).is_file() for name in _VOCABULARY_FILES)
    ]
    if not folders:
        raise CheckpointError(
            f"{single.path}: got no tokenizers, which no single file has, want --config FOLDER, an "
            "SDXL checkpoint in diffusers layout to take tokenizers and configs from; or "
            f"tokenizer/ of {_SDXL_ID}, or {_CLIP_ID}, in {cache_folder()}."
        )
    for network, name in TOKENIZERS.items():
        if network in single.networks:
            (folder / name).mkdir()
            for file in _VOCABULARY_FILES:
                shutil.copyfile(folders[0] / file, folder / name / file)
            _write_json(_tokenizer_config(name), folder / name / "tokenizer_config.json")


def _tokenizer_config(name: str) -> JsonObject:
    """As stable-diffusion-xl-base-1.0 has it; its second tokenizer pads with "!"."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>" if name == "tokenizer" else "!",
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }


def _check_vocabularies(single: SingleFile, folder: Path) -> None:
    for network, name in TOKENIZERS.items():
        if network in single.networks:
            embeddings = "text_model.embeddings.token_embedding.weight"
            num_rows = single.networks[network][embeddings].shape[0]
            vocabulary, _ = read_vocabulary(folder / name)
            if len(vocabulary) != num_rows:
                raise CheckpointError(
                    f"{single.path} {network}: got embeddings of {num_rows} tokens and a "
                    f"{name} of {len(vocabulary)}, want as many. Name the model's own: --config."
                )


def _write_json(content: JsonObject, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
