import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.bundle.layouts import MANIFEST_NAME
from triptych.bundle.manifest import (
    SCHEMA_VERSION,
    Manifest,
    read_manifest,
    write_manifest,
)
from triptych.errors import BundleError
from triptych.models.composition import SourceRole
from triptych.types import ComponentName, FormatName, Precision

# Plain values, made into records inside the tests: the run-time checks of annotations draw from
# `random`, which Hypothesis refuses while it builds examples.
# Surrogates are no text: JSON in UTF-8 cannot hold them.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
counts = st.integers(min_value=0, max_value=2**53)
numbers = st.floats(allow_nan=False, allow_infinity=False)
precisions = st.sampled_from(get_args(Precision))
tensors = st.fixed_dictionaries(
    {
        "name": st.none() | text,
        "artifact_name": text,
        "dtype": text,
        "shape": st.lists(counts | text, max_size=4),
    }
)
verifications = st.fixed_dictionaries(
    {"case": text, "tensor": text, "rel_l2": numbers, "max_abs": numbers, "limit": numbers}
)
components = st.fixed_dictionaries(
    {
        "name": st.sampled_from(get_args(ComponentName)),
        "file": text,
        "precision": precisions,
        "inputs": st.lists(tensors, max_size=2),
        "outputs": st.lists(tensors, max_size=2),
        "num_parameters": counts,
        "weight_dtypes": st.dictionaries(text, counts, max_size=2),
        "opset": st.none() | counts,
        "source_sha256": st.dictionaries(text, text, max_size=2),
        "verification": st.lists(verifications, max_size=2),
        "chunks": st.lists(text, max_size=2),
    }
)
sources = st.fixed_dictionaries(
    {
        "role": st.sampled_from(get_args(SourceRole)),
        "name": text,
        "sha256": st.dictionaries(text, text, max_size=2),
        "scale": st.none() | numbers,
        "token": st.none() | text,
    }
)
distances = st.fixed_dictionaries({"rel_l2": numbers, "psnr_db": st.none() | numbers})
measured = st.fixed_dictionaries(
    {
        "engine": text,
        "engine_version": text,
        "reference": text,
        "prompts": st.lists(text, max_size=2),
        "num_inference_steps": counts,
        "guidance_scale": numbers,
        "seeds": st.lists(counts, max_size=2),
        "height_px": counts,
        "width_px": counts,
        "components": st.dictionaries(
            st.sampled_from(get_args(ComponentName)), distances, max_size=2
        ),
        "trajectory": st.none() | distances,
        "worst_step": st.none() | counts,
        "worst_step_rel_l2": st.none() | numbers,
        "image": st.none() | distances,
        "image_ssim": st.none() | numbers,
    }
)
files = st.fixed_dictionaries({"path": text, "sha256": text, "size_bytes": counts})
fields_of_a_manifest = st.fixed_dictionaries(
    {
        "schema_version": st.just(SCHEMA_VERSION),
        "format": st.sampled_from(get_args(FormatName)),
        "kind": text,
        "precision": precisions,
        "created": text,
        "toolchain": st.dictionaries(text, text, max_size=2),
        "components": st.lists(components, max_size=2),
        "files": st.lists(files, max_size=2),
        "settings": st.dictionaries(text, counts | text, max_size=2),
        "sources": st.lists(sources, max_size=2),
        "parity": st.none() | measured,
    }
)
one_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)


@one_folder
@given(fields=fields_of_a_manifest)
def test_what_was_written_is_read(fields: dict[str, object], tmp_path: Path) -> None:
    manifest = msgspec.convert(fields, Manifest)
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / MANIFEST_NAME).read_text(encoding="utf-8")) == fields


def test_a_manifest_from_before_parity_was_measured_is_read(
    manifest: Manifest, tmp_path: Path
) -> None:
    write_manifest(manifest, tmp_path)
    path = tmp_path / MANIFEST_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document.pop("parity") is None
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_manifest(tmp_path) == manifest


def test_it_is_indented_and_ends_in_a_newline(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path)
    content = (tmp_path / MANIFEST_NAME).read_text(encoding="utf-8")
    assert content.startswith('{\n  "schema_version"')
    assert content.endswith("\n}\n")


@one_folder
@given(content=st.binary(max_size=64))
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_manifest(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema_version": "1"}',
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "kind": "\xff"}',
        b'{"schema_version": 1, "more": ' + b"[" * 100_000,
    ],
    ids=["empty", "list", "text version", "no fields", "no UTF-8", "deep"],
)
def test_what_is_no_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match="want a triptych manifest"):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        read_manifest(tmp_path)


@pytest.fixture
def manifest(onnx_folder: Path) -> Manifest:
    return read_manifest(onnx_folder)


def test_a_newer_schema_is_refused_whatever_else_it_holds(
    manifest: Manifest, tmp_path: Path
) -> None:
    newer = SCHEMA_VERSION + 1
    write_manifest(replace(manifest, schema_version=newer), tmp_path)
    with pytest.raises(BundleError, match=rf"got schema version {newer}.*Upgrade triptych"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({"schema_version": newer, "shape": "new"}))
    with pytest.raises(BundleError, match=rf"got schema version {newer}.*Upgrade triptych"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", "an unknown one"), ("precision", "int3"), ("files", {}), ("components", None)],
)
def test_a_field_of_another_kind_is_refused(
    field: str, value: object, manifest: Manifest, tmp_path: Path
) -> None:
    write_manifest(manifest, tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(BundleError, match=rf"\$\.{field}"):
        read_manifest(tmp_path)


def test_the_same_manifest_is_written_the_same(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path)
    once = (tmp_path / MANIFEST_NAME).read_bytes()
    write_manifest(read_manifest(tmp_path), tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == once
