"""triptych doctor."""

from triptych.cli.console import print_json, stdout, working
from triptych.cli.options import JsonOption


def doctor(*, json: JsonOption = False) -> None:
    """Say which engines this machine has, what they would compute in, and what is missing."""
    from rich.table import Table

    from triptych.workflows.doctor import diagnose

    with working("probing engines"):
        diagnosis = diagnose()
    if json:
        print_json(diagnosis.to_json())
        return
    console = stdout()
    features = ", ".join(diagnosis.cpu_features) or "not known on this system"
    console.print(f"triptych {diagnosis.triptych}, Python {diagnosis.python}, {diagnosis.system}")
    console.print(f"{diagnosis.num_cpus} processors; instruction sets: {features}")
    table = Table()
    for heading in ("runtime", "versions", "devices", "computes float32 models in"):
        table.add_column(heading)
    for probe in diagnosis.engines:
        table.add_row(
            probe.runtime,
            "\n".join(f"{name} {version}" for name, version in probe.versions.items())
            or "not installed",
            "\n".join(probe.devices) or probe.remedy.replace("[", r"\["),
            "\n".join(f"{device}: {precision}" for device, precision in probe.precision.items()),
        )
    console.print(table)
