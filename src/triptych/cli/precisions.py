"""triptych precisions."""

from typing import TYPE_CHECKING

from triptych.cli.console import print_json, say, stdout, working
from triptych.cli.options import JsonOption

if TYPE_CHECKING:
    from triptych.models.precisions import PrecisionSupport
    from triptych.workflows.precisions import EngineArithmetic


def precisions(*, json: JsonOption = False) -> None:
    """List what --precision can be: what it stores, what computes, and in which format."""
    from rich.table import Table

    from triptych.workflows.precisions import known_precisions

    with working("probing engines"):
        known = known_precisions()
    if json:
        print_json(known.to_json())
        return
    table = Table(show_lines=True)
    for heading in ("precision", *known.formats):
        table.add_column(heading)
    for name, row in known.table.items():
        table.add_row(name, *(_cell(row[to]) for to in known.formats))
    stdout().print(table)
    for engine in known.engines:
        say(_engine_text(engine))


def _cell(support: "PrecisionSupport") -> str:
    if not support.exported:
        return f"[dim]- {support.remark}[/]"
    lines = [f"{support.stored}; computes {support.computed}", f"by {support.library}"]
    return "\n".join([*lines, *([support.remark] if support.remark else [])])


def _engine_text(engine: "EngineArithmetic") -> str:
    offers = f"; offers {', '.join(engine.offers)}" if engine.offers else ""
    return f"here: {engine.runtime} on {engine.device}: {engine.unasked}{offers}"
