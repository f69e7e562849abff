"""The files of a CLIP tokenizer, in the layouts that tools have written over the years."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from triptych.errors import CheckpointError
from triptych.models.configs import JsonObject, read_json, setting

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_DEFAULT_TOKENS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
"""What transformers' CLIPTokenizer takes where a config says nothing."""

_MAX_MERGES = 49152 - 256 - 2
"""CLIP's vocabulary without its bytes and two special tokens; later merges are not read."""

END_OF_WORD = "</w>"


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of all tokens, and the merges in order of rank.

    Raises:
        CheckpointError: a file is missing, unreadable, or they are not of one tokenizer.
    """
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    combined_path = folder / "tokenizer.json"
    if vocab_path.is_file() or merges_path.is_file() or not combined_path.is_file():
        vocab = _check_vocab(read_json(_present(vocab_path)), where=vocab_path)
        lines = _read_text(_present(merges_path)).strip().split("\n")[1 : 1 + _MAX_MERGES]
        return vocab, _check_merges([line.split() for line in lines], vocab, where=merges_path)
    where = f"{combined_path} 'model'"
    model = setting(read_json(combined_path), "model", dict, where=str(combined_path))
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != END_OF_WORD:
        raise CheckpointError(
            f"{where}: got type {model.get('type')!r} with end_of_word_suffix "
            f"{model.get('end_of_word_suffix')!r}, want CLIP's 'BPE' with {END_OF_WORD!r}."
        )
    vocab = _check_vocab(setting(model, "vocab", dict, where=where), where=combined_path)
    # Merges are "a b" or, since tokenizers 0.20, ["a", "b"].
    merges = [
        merge.split() if isinstance(merge, str) else merge
        for merge in setting(model, "merges", list, where=where)
    ]
    return vocab, _check_merges(merges, vocab, where=combined_path)


def _check_vocab(vocab: Mapping[str, object], *, where: Path) -> dict[str, int]:
    checked = {token: index for token, index in vocab.items() if isinstance(index, int)}
    if not checked or len(checked) != len(vocab):
        raise CheckpointError(f"{where}: got a vocabulary without ids, want a number a token.")
    return checked


def _check_merges(
    merges: Sequence[object], vocab: Mapping[str, int], *, where: Path
) -> list[tuple[str, str]]:
    checked = []
    for merge in merges:
        match merge:
            case [str(left), str(right)] if {left, right, left + right} <= vocab.keys():
                checked.append((left, right))
            case _:
                raise CheckpointError(
                    f"{where}: got the merge {merge!r}, want two tokens that with their union are "
                    "in the vocabulary. The two files are not of one tokenizer."
                )
    return checked


def read_added_tokens(folder: Path, config: JsonObject) -> dict[str, int]:
    """Tokens beside the vocabulary, from the newest of the three places that tools write."""
    if "added_tokens_decoder" in config:
        where = str(folder / "tokenizer_config.json")
        decoder = setting(config, "added_tokens_decoder", dict, where=where)
        return {
            _token_text(token, where=where): _token_id(index, where=where)
            for index, token in decoder.items()
        }
    added: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        path = folder / "added_tokens.json"
        added.update(_check_vocab(read_json(path), where=path))
    if (folder / "tokenizer.json").is_file():
        where = str(folder / "tokenizer.json")
        for token in setting(
            read_json(folder / "tokenizer.json"), "added_tokens", list, where=where
        ):
            text = _token_text(token, where=where)
            index = token.get("id") if isinstance(token, dict) else None
            added[text] = _token_id(index, where=where)
    return added


def read_special_tokens(folder: Path, config: JsonObject) -> dict[str, str]:
    """The texts of bos, eos, unk and pad; special_tokens_map.json wins in older folders."""
    path = folder / "special_tokens_map.json"
    settings = {**_DEFAULT_TOKENS, **config}
    if path.is_file() and "added_tokens_decoder" not in config:
        settings.update(read_json(path))
    return {name: _token_text(settings[name], where=str(folder)) for name in _DEFAULT_TOKENS}


def _token_text(token: object, *, where: str) -> str:
    """The text of a token that JSON gives as a string, or as an object with flags."""
    match token:
        case str():
            return token
        case {"content": str(content), **flags}:
            for flag in ("lstrip", "rstrip", "single_word"):
                if flags.get(flag):
                    raise CheckpointError(
                        f"{where} token {content!r}: got {flag} set, want it unset. CLIP's tokens "
                        "do not take white space with them."
                    )
            return content
        case _:
            raise CheckpointError(
                f"{where}: got {token!r}, want a token, as a string or with its 'content'."
            )


def _token_id(index: object, *, where: str) -> int:
    if not str(index).isdecimal():
        raise CheckpointError(f"{where}: got the token id {index!r}, want a number from 0 on.")
    return int(str(index))


def _present(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: got no such file, want vocab.json and merges.txt, or tokenizer.json alone. "
            "Copy the whole tokenizer folder of the checkpoint."
        )
    return path


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: got {error}, want readable text.") from error
