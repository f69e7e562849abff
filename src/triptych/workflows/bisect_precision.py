"""What of an error comes from what the engine computes in: by component, and by switch.

The candidate is the engine as its own clients run it, which choose nothing: it computes in what the
device likes best. triptych's own commands tell it to compute in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from triptych.errors import UsageError
from triptych.parity.bisect import Section, Share, Trial, carriers_text, make_share, ranked
from triptych.parity.candidate import Candidate
from triptych.parity.component_trial import measure_component, try_component
from triptych.parity.swap import Side, SwapRuns, component_shares
from triptych.runtimes.base import Runtime
from triptych.runtimes.coreml_reference import CoreMlReference
from triptych.runtimes.openvino import OpenVino
from triptych.workflows.bisect_ground import Ground, worst_component_row, worst_run_row

_EXACT = "fp32"

_OPENVINO_EXACT: Mapping[str, str | int] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
"""What triptych tells OpenVINO, so that nothing is rounded unasked."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Switch:
    """One thing that an engine can be told.

    Attributes:
        name: in the engine's words.
        value: what makes it exact.
        only: the engine as it is but for this, which is exact.
        but: the exact engine but for this; None where it cannot be told apart.
    """

    name: str
    value: str
    only: Runtime
    but: Runtime | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Engines:
    """An engine left to itself, and made exact.

    Attributes:
        default: as it is.
        name: of that, for people.
        exact: in float32.
        switches: what lies between them.
    """

    default: Runtime
    name: str
    exact: Runtime
    switches: tuple[_Switch, ...]


def check_precision(candidate: Candidate) -> None:
    """Refuse an engine that computes in what the file says.

    Raises:
        UsageError: it has no choice, or is told to compute in float32, which is the other side.
    """
    engines = _engines(candidate.runtime)
    if engines.name == _EXACT:
        raise UsageError(
            f"precision: got --precision {_EXACT}, which everything is held against, want another, "
            "or none for what the engine chooses."
        )


def precision_sections(ground: Ground) -> tuple[Section, ...]:
    """By component over a whole run, where the bundle is whole; and by switch for one component.

    Raises:
        BundleError: the component is not there, or cannot be read.
        BackendError: the engine or the device is missing.
    """
    engines = _engines(ground.candidate.runtime)
    by_switch = _by_switch(ground, engines)
    if not ground.candidate.is_whole:
        return (by_switch,)
    return _by_component(ground, engines), by_switch


def _by_component(ground: Ground, engines: _Engines) -> Section:
    bundle = ground.candidate.bundle
    sides = {
        engines.name: Side(bundle=bundle, runtime=engines.default),
        _EXACT: Side(bundle=bundle, runtime=engines.exact),
    }
    runs = SwapRuns(ground.recording, ground.candidate, sides)
    chosen = runs.all_of(engines.name)
    ground.report(f"every component at {engines.name}")
    whole = runs.run(chosen, name=engines.name)
    self_difference = runs.self_difference(whole, chosen)
    exact = runs.run(runs.all_of(_EXACT), name=_EXACT).trial
    trials, shares = component_shares(
        runs,
        exact=_EXACT,
        changed=engines.name,
        whole=whole.trial,
        self_difference=self_difference,
        exact_error=exact.error,
        report=ground.report,
    )
    row = worst_run_row(ground, whole, self_difference=self_difference)
    return Section(
        subject="image",
        row=row,
        self_difference=self_difference,
        whole=whole.trial,
        trials=(exact, *trials),
        shares=shares,
        conclusion=carriers_text(row, shares),
    )


def _by_switch(ground: Ground, engines: _Engines) -> Section:
    component = ground.request.component
    bundle, precision = ground.candidate.bundle, ground.candidate.precisions[component]
    ground.report(f"{component} at {engines.name}")
    measured = measure_component(
        ground.recording,
        Side(bundle=bundle, runtime=engines.default),
        component,
        precision=precision,
        name=engines.name,
    )
    whole = measured.trial

    def attempt(runtime: Runtime, name: str) -> Trial:
        ground.report(f"{component}: {name}")
        side = Side(bundle=bundle, runtime=runtime)
        return try_component(
            ground.recording, side, component, precision=precision, name=name
        ).trial

    exact = attempt(engines.exact, _EXACT)
    trials, shares = [exact], list[Share]()
    for switch in engines.switches:
        default = f"{switch.name}={whole.switches.get(switch.name.lower(), engines.name)}"
        without = attempt(switch.only, f"{engines.name} but {switch.name}={switch.value}")
        but = None if switch.but is None else attempt(switch.but, f"{_EXACT} but {default}")
        trials += [without] if but is None else [without, but]
        shares.append(
            make_share(
                default,
                alone=None if but is None else but.error,
                without=without.error,
                whole=whole.error,
                self_difference=measured.self_difference,
                exact=exact.error,
            )
        )
    row = worst_component_row(ground, measured)
    return Section(
        subject=component,
        row=row,
        self_difference=measured.self_difference,
        whole=whole,
        trials=tuple(trials),
        shares=ranked(shares),
        conclusion=carriers_text(row, ranked(shares)),
    )


def _engines(runtime: Runtime) -> _Engines:
    match runtime:
        case OpenVino():
            return _openvino(runtime)
        case CoreMlReference():
            declared = replace(runtime, settings=replace(runtime.settings, precision=None))
            exact = replace(runtime, settings=replace(runtime.settings, precision="fp32"))
            switch = _Switch(name="numeric_mode", value=_EXACT, only=exact, but=declared)
            return _Engines(default=declared, name="as declared", exact=exact, switches=(switch,))
        case _:
            raise UsageError(
                f"precision: got {runtime.name}, which computes in what the file says, want "
                "openvino or coreml-reference. To see what the file's own precision costs: "
                "triptych bisect export BUNDLE --reference CHECKPOINT"
            )


def _openvino(runtime: OpenVino) -> _Engines:
    """The device's own choice, or the precision that was asked for; against float32."""
    asked = runtime.settings.precision
    default = replace(runtime, force_precision=asked is not None)
    exact = replace(
        runtime, settings=replace(runtime.settings, precision="fp32"), force_precision=True
    )
    if asked is not None:
        switch = _Switch(name="--precision", value=_EXACT, only=exact, but=default)
        return _Engines(default=default, name=asked, exact=exact, switches=(switch,))
    switches = [
        _Switch(
            name=name,
            value=str(value),
            only=replace(default, properties={name: value}),
            but=replace(default, properties=_others(name)),
        )
        for name, value in _OPENVINO_EXACT.items()
    ]
    mode = {"EXECUTION_MODE_HINT": "ACCURACY"}
    switches.append(
        _Switch(
            name="EXECUTION_MODE_HINT",
            value="ACCURACY",
            only=replace(default, properties=mode),
            but=None,
        )
    )
    return _Engines(
        default=default, name="the device's default", exact=exact, switches=tuple(switches)
    )


def _others(name: str) -> dict[str, str | int]:
    return {other: value for other, value in _OPENVINO_EXACT.items() if other != name}
