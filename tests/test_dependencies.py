import importlib
import sys
from pathlib import Path

import pytest

from triptych.dependencies import import_optional
from triptych.errors import MissingDependencyError


def test_the_package_is_returned() -> None:
    assert import_optional("json", extra="export") is sys.modules["json"]


def test_a_missing_package_names_itself_and_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        import_optional("no_such_package_anywhere", extra="openvino")
    assert caught.value.package == "no_such_package_anywhere"
    assert caught.value.extra == "openvino"


def test_a_package_that_is_only_needed_is_missed_too() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        import_optional("json", "no_such_package_anywhere", extra="export")
    assert caught.value.package == "no_such_package_anywhere"


def test_the_package_that_an_import_misses_inside_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed_engine.py").write_text("import no_such_package_anywhere.core\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError) as caught:
        import_optional("half_installed_engine", extra="export")
    assert caught.value.package == "no_such_package_anywhere"
    assert isinstance(caught.value.__cause__, ImportError)


def test_what_sends_usage_statistics_cannot_be_imported_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    (tmp_path / "openvino_telemetry.py").touch()
    (tmp_path / "talkative_engine.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    quiet = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_optional("talkative_engine", extra="openvino").quiet
    sender = importlib.import_module("openvino_telemetry")  # for others it is there, afterwards
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sender)
    import_optional("json", extra="openvino")
    assert sys.modules["openvino_telemetry"] is sender
