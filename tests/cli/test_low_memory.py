"""--low-memory reaches the engine and the reference."""

from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from triptych.cli.app import app
from triptych.models import modules
from triptych.runtimes import _onnx_parts


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--low-memory"], []])
def test_a_check_in_little_memory(options: list[str], checkpoint: Path, onnx_folder: Path) -> None:
    cut = _onnx_parts.open_parts
    with (
        patch("triptych.runtimes.onnxruntime.open_parts", wraps=cut) as parts,
        patch.object(modules, "load_lean_module", wraps=modules.load_lean_module) as lean,
    ):
        steps = ["--num-inference-steps", "2"]
        result = CliRunner().invoke(
            app, ["check", str(onnx_folder), "--reference", str(checkpoint), *steps, *options]
        )
    assert result.exit_code == 0, result.output
    assert bool(parts.call_count) == bool(options)
    assert bool(lean.call_count) == bool(options)
