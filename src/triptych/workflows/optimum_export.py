"""A whole model by optimum's exporters, in a process of their own, for triptych to verify."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from triptych.dependencies import import_optional
from triptych.errors import BackendError, UsageError
from triptych.models.checkpoint import Checkpoint
from triptych.types import FormatName, Precision

ExportEngine: TypeAlias = Literal["triptych", "optimum"]
"""Who converts: triptych's own exporters, or optimum-onnx and optimum-intel. Both are verified."""

_WEIGHTS: Mapping[FormatName, tuple[str, tuple[Precision, ...]]] = {
    "onnx": ("--dtype", ("fp32", "fp16")),
    "openvino": ("--weight-format", ("fp32", "fp16", "int8", "int4")),
}
"""By format, the option of optimum-cli and the words that mean there what they mean here.

The option is always given: left out, optimum-intel stores int8 from a billion parameters on."""

_SILENCE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CI": "true",  # OpenVINO's and NNCF's statistics are not sent from there
    "NNCF_CI": "1",
}
_TOLD_LINES = 20

DISTRIBUTIONS = ("optimum", "optimum-onnx", "optimum-intel")
"""What a bundle of optimum's was made with besides."""


def check_optimum(
    formats: Sequence[FormatName], precision: Precision, *, others: Mapping[str, bool]
) -> None:
    """Refuse what optimum's exporters do not have, or call otherwise.

    Args:
        formats: what is asked for.
        precision: what is asked for.
        others: settings that optimum is not told of, and whether they were given.

    Raises:
        UsageError: it says what there is.
    """
    for to in formats:
        if to not in _WEIGHTS:
            raise UsageError(
                f"engine: got optimum for {to}, want one of {', '.join(_WEIGHTS)}. "
                "Leave --engine out."
            )
        known = _WEIGHTS[to][1]
        if precision not in known:
            raise UsageError(
                f"{to}: got precision {precision!r} with --engine optimum, want one of "
                f"{', '.join(known)}."
            )
    given = [name for name, is_given in others.items() if is_given]
    if given:
        raise UsageError(
            f"engine: got optimum with {', '.join(given)}, want neither: optimum exports a whole "
            "model, as it is."
        )


def run_optimum(
    checkpoint: Checkpoint, folder: Path, *, to: FormatName, precision: Precision
) -> None:
    """Export a checkpoint, its tokenizers and its scheduler into a folder.

    Raises:
        MissingDependencyError: the export extra is not installed.
        BackendError: optimum could not; its last words are in the message.
    """
    import_optional("optimum", extra="export")
    option, _ = _WEIGHTS[to]
    ran = subprocess.run(  # noqa: S603  no shell, and no word that is not ours or a path
        [
            *(sys.executable, "-m", "optimum.commands.optimum_cli", "export", to),
            *("--model", str(checkpoint.folder), "--task", "text-to-image"),
            *(option, precision),
            str(folder),
        ],
        env={**os.environ, **_SILENCE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if ran.returncode != 0:
        lines = ran.stderr.splitlines()[-_TOLD_LINES:]
        raise BackendError(
            f"optimum: got exit code {ran.returncode}, want an export to {to}. Try it without "
            "--engine optimum.\n" + "\n".join(lines)
        )
