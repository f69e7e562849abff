"""Adding a textual inversion's token to a tokenizer and its vectors to a text encoder."""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from triptych.errors import CheckpointError
from triptych.models.configs import read_json
from triptych.models.stored_tensor import FileTensor, StoredTensor
from triptych.models.textual_inversion import EMBEDDINGS
from triptych.workflows.compose_base import TOKENIZERS, Networks


def add_token(
    token: str, vectors: StoredTensor, *, network: str, folder: Path, networks: Networks
) -> None:
    """Add a token, and `token_1` and so on for further vectors, as diffusers names them.

    The tokenizer's files are written by transformers, so that both it and we read them.

    Args:
        token: what prompts call it.
        vectors: [number, width] or [width].
        network: the text encoder's folder.
        folder: the checkpoint's; its tokenizer and config are changed.
        networks: its weights; the table of embeddings is replaced by a longer one.

    Raises:
        CheckpointError: the token is there already, or the tokenizer does not fit the table.
    """
    from transformers import CLIPTokenizer

    table = networks[network][EMBEDDINGS]
    place = folder / TOKENIZERS[network]
    count = vectors.shape[0] if len(vectors.shape) == 2 else 1
    names = [token, *(f"{token}_{number}" for number in range(1, count))]
    with _quiet_transformers():
        tokenizer = CLIPTokenizer.from_pretrained(place)
        taken = [name for name in (*names, f"{token}_1") if name in tokenizer.get_vocab()]
        if taken or not token.strip():
            raise CheckpointError(
                f"{vectors.file}: got the token {(taken or [token])[0]!r}, want one that "
                f"{TOKENIZERS[network]} has not. Name another: TOKEN={vectors.file.name}"
            )
        if len(tokenizer) != table.shape[0]:
            raise CheckpointError(
                f"{place}: got {len(tokenizer)} tokens, want as many as {network} has embeddings, "
                f"{table.shape[0]}."
            )
        tokenizer.add_tokens(names)
        tokenizer.save_pretrained(place)
    config_path = folder / network / "config.json"
    config = {**read_json(config_path), "vocab_size": table.shape[0] + count}
    config_path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    added = FileTensor(file=vectors.file, key=vectors.key)
    longer = replace(
        table, appended=(*table.appended, added), shape=(table.shape[0] + count, table.shape[1])
    )
    networks[network] = {**networks[network], EMBEDDINGS: longer}


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the remark that ftfy is not installed, and other talk."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
