"""The U-Net at its published size: exported, and one step of it beside PyTorch.

Not part of `make test`: it writes 17 GB and takes minutes. `make test-full-size` runs it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from triptych.bundle.bundle import bundle_from_checkpoint, open_bundle
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import open_checkpoint
from triptych.models.feeds import unet_feed
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import CheckedSession
from triptych.testing import full_size_checkpoint
from triptych.types import Array, FormatName, TensorMap
from triptych.workflows.export import ExportRequest, export_bundles

pytestmark = pytest.mark.full_size

ENGINES: Mapping[FormatName, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
LEAN = RuntimeSettings(low_memory=True)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size_checkpoint(tmp_path_factory.mktemp("full_size") / "checkpoint")


@pytest.fixture(scope="module")
def feed(full_size: Path) -> TensorMap:
    """The first step of a picture of 512 x 512."""
    config = open_checkpoint(full_size).config
    return unet_feed(config, batch=1, height=64, width=64, random=np.random.default_rng(0))


@pytest.fixture(scope="module")
def expected(full_size: Path, feed: TensorMap) -> Array:
    artifact = bundle_from_checkpoint(open_checkpoint(full_size)).artifact("unet")
    with CheckedSession(make_runtime("pytorch", LEAN).open(artifact), artifact) as session:
        return session.run(feed)["noise_pred"]


@pytest.mark.parametrize("to", ENGINES)
def test_one_step_is_pytorchs(
    to: FormatName, full_size: Path, feed: TensorMap, expected: Array, tmp_path: Path
) -> None:
    request = ExportRequest(
        checkpoint=full_size,
        output=tmp_path,
        formats=[to],
        components=["unet"],
        settings=ExportSettings(precision="fp16"),
    )
    artifact = open_bundle(export_bundles(request)[to]).artifact("unet")
    with CheckedSession(make_runtime(ENGINES[to], LEAN).open(artifact), artifact) as session:
        found = session.run(feed)["noise_pred"]
    assert rel_l2(found, expected) <= COMPONENT_REL_L2["fp16"]
