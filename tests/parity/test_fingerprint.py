"""What a machine is, as far as it changes numbers, and no more than that."""

import subprocess
import sys

import pytest

from triptych.parity.fingerprint import take_fingerprint


def test_variables_that_change_numbers_are_told_and_places_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OV_CPU_X"):
        monkeypatch.setenv(name, "1")
    for name in ("TORCH_HOME", "OV_CACHE_DIR", "MKL_PATH", "HF_TOKEN", "HOME", "MY_OMP_SECRET"):
        monkeypatch.setenv(name, "private")
    told = take_fingerprint().environment
    assert told["OMP_NUM_THREADS"] == told["NVIDIA_TF32_OVERRIDE"] == told["OV_CPU_X"] == "1"
    assert "private" not in told.values()


def test_packages_are_named_without_importing_them() -> None:
    script = (
        "import sys; from triptych.parity.fingerprint import take_fingerprint as f; p = f();"
        "print(p.packages['torch'], 'torch' in sys.modules, p.num_cpus > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    version, is_imported, has_cpus = done.stdout.split()
    assert version
    assert (is_imported, has_cpus) == ("False", "True")


def test_it_is_one_line_for_people() -> None:
    found = take_fingerprint()
    assert found.triptych in found.summary
    assert "\n" not in found.summary
