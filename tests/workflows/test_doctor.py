"""What this machine can run; a missing engine is a finding, not an error."""

import json
import platform
import sys

import pytest

import triptych
from triptych.runtimes import runtime_names
from triptych.workflows.doctor import diagnose


def test_every_engine_is_probed() -> None:
    diagnosis = diagnose()
    assert tuple(probe.runtime for probe in diagnosis.engines) == runtime_names()
    assert diagnosis.triptych == triptych.__version__
    assert diagnosis.python == platform.python_version()
    assert diagnosis.num_cpus >= 1


def test_what_is_installed_says_its_version_and_devices() -> None:
    probes = {probe.runtime: probe for probe in diagnose().engines}
    assert probes["onnxruntime"].installed
    assert probes["onnxruntime"].versions
    assert "CPUExecutionProvider" in probes["onnxruntime"].devices
    assert probes["pytorch"].devices[0] == "cpu"
    assert probes["pytorch"].precision["cpu"] == "float32"
    for name in ("onnxruntime", "pytorch"):
        assert probes[name].remedy == ""


@pytest.mark.parametrize(
    ("package", "runtime", "extra"),
    [("onnxruntime", "onnxruntime", "onnxruntime"), ("diffusers", "pytorch", "export")],
)
def test_what_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, runtime: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say: not importable
    (probe,) = (probe for probe in diagnose().engines if probe.runtime == runtime)
    assert not probe.installed
    assert probe.devices == ()
    assert f"pip install 'triptych[{extra}]'" in probe.remedy


def test_json_is_plain() -> None:
    document = json.loads(json.dumps(diagnose().to_json(), allow_nan=False))
    assert [engine["runtime"] for engine in document["engines"]] == list(runtime_names())
