"""What keeps Apple's clients from opening a Core ML bundle is found without a Mac."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.types import FormatName
from triptych.workflows.contract import contract_problems
from triptych.workflows.inspect import inspect_path

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(coreml_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(coreml_folder, tmp_path / "bundle")


def test_our_own_bundle_keeps_the_contract(coreml_bundle: Bundle) -> None:
    problems = contract_problems(coreml_bundle)
    assert set(problems) == set(coreml_bundle.artifacts)
    assert not any(problems.values())
    assert inspect_path(coreml_bundle.folder).problems == ()


def test_other_formats_have_no_such_contract(onnx_bundle: Bundle) -> None:
    assert contract_problems(onnx_bundle) == {}


def test_a_preview_decoder_is_none_of_apples(preview_bundles: Mapping[FormatName, Bundle]) -> None:
    assert contract_problems(preview_bundles["coreml"]) == {}


def test_a_network_with_other_ports_is_told(coreml_bundle: Bundle) -> None:
    decoder = coreml_bundle.artifact("vae_decoder")
    wrong = replace(coreml_bundle.artifact("unet"), path=decoder.path)
    bundle = replace(coreml_bundle, artifacts={"unet": wrong})
    problems = contract_problems(bundle)["unet"]
    assert any("want 'sample' among them" in problem for problem in problems)
    assert any("does not look for" in problem for problem in problems)


def test_a_renamed_package_is_told(copied: Path) -> None:
    (package,) = copied.glob("*_vae_decoder.mlpackage")
    renamed = package.rename(copied / "decoder.mlpackage")
    bundle = open_bundle(copied, check_sizes=False)
    artifact = replace(bundle.artifact("vae_decoder"), path=renamed)
    problems = contract_problems(replace(bundle, artifacts={"vae_decoder": artifact}))
    (problem,) = problems["vae_decoder"]
    assert problem.startswith("decoder.mlpackage: got a name that Apple's script does not look for")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_vocabulary_is_told(name: str, copied: Path) -> None:
    (copied / name).unlink()
    bundle = open_bundle(copied, check_sizes=False)
    problems = contract_problems(bundle)
    assert all(name in problems[component][0] for component in ("text_encoder", "text_encoder_2"))
    assert not problems["unet"]
    assert any(name in problem for problem in inspect_path(copied).problems)


def test_damage_is_told_once(copied: Path) -> None:
    (package,) = copied.glob("*_vae_decoder.mlpackage")
    next(package.rglob("weight.bin")).write_bytes(b"")
    told = [problem for problem in inspect_path(copied).problems if "vae_decoder" in problem]
    assert len(told) == 2  # the hash, and what cannot be read
