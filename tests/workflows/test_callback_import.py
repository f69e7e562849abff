"""Callbacks by name."""

from pathlib import Path

import pytest

from triptych.errors import UsageError
from triptych.workflows.callback_import import import_callback


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_a_test.py").write_text(
        "NUMBER = 7\n\ndef keep(pipe, index, timestep, callback_kwargs):\n"
        "    return callback_kwargs\n"
    )
    (tmp_path / "broken_for_a_test.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)


def test_a_function_beside_the_command() -> None:
    callback = import_callback("mine_for_a_test:keep")
    assert callback(None, 0, 999.0, {}) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine_for_a_test", "want module:function"),
        (":keep", "want module:function"),
        ("no_such_module_anywhere:f", "cannot import no_such_module_anywhere"),
        ("broken_for_a_test:f", "cannot import broken_for_a_test"),
        ("mine_for_a_test:NUMBER", "can be called: keep"),
        ("mine_for_a_test:absent", "can be called: keep"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        import_callback(name)
