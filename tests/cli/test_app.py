"""The command as a process: what it imports, how it is called, how it ends."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "coremltools")
COMMANDS = (
    "export",
    "encode",
    "sample",
    "check",
    "compare",
    "inspect",
    "quality",
    "bench",
    "precisions",
    "doctor",
    "tiny-checkpoint",
    "demo-checkpoint",
    "demo",
)

WITHOUT_FRAMEWORKS = f"""
import sys

# Python's own way to say that a module is not there: importing it raises.
sys.modules.update(dict.fromkeys({(*HEAVY, "optimum", "accelerate")!r}))
from triptych.cli.app import main
main()
"""


def triptych(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "triptych.cli", *arguments)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", check=False
    )


def test_importing_the_command_imports_no_framework() -> None:
    done = python("-c", "import sys, json, triptych.cli.app; print(json.dumps(list(sys.modules)))")
    assert done.returncode == 0, done.stderr
    roots = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert roots.isdisjoint(HEAVY)
    assert "triptych" in roots


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_needs_no_framework(command: tuple[str, ...]) -> None:
    done = python("-c", WITHOUT_FRAMEWORKS, *command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


def test_help_names_every_command() -> None:
    done = triptych("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_version() -> None:
    from triptych import __version__

    done = triptych("--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("draw",), ("--verbose",), ("inspect",), ("inspect", "x", "--nothing"), ("export", "x", "y")],
)
def test_a_call_that_makes_no_sense(arguments: tuple[str, ...]) -> None:
    done = triptych(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_one_message_on_stderr_and_an_exit_code() -> None:
    done = triptych("inspect", "no such folder")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such folder: got neither triptych.json nor")
    assert "Traceback" not in done.stderr


def test_an_unknown_format_is_named_with_the_known_ones() -> None:
    done = triptych("export", "no such folder", "out", "--to", "tflite")
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr
