"""What two runs must share exactly before it means anything to compare their numbers.

The same seed is another noise in another library, and the same scheduler's name another schedule:
what was really used is compared, not what was asked for.

Source: the traps of other tools: a seed whose generator differs (Apple's NumPy, GenAI's C++), betas
without their end point, time_ids with width before height, prompts given to each other's encoder.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

import numpy as np
from typing_extensions import TypeIs

from triptych.bundle.bundle import Bundle
from triptych.errors import IncomparableError
from triptych.models.configs import read_json
from triptych.sampling.pipeline import Prepared
from triptych.sampling.prompt_encoding import Prompts
from triptych.types import Array

Fact: TypeAlias = object
"""A plain value, as JSON holds it: a word, a number, None, or lists and mappings of them."""

SCHEDULER_CONFIG = ("scheduler", "scheduler_config.json")

_MAY_DIFFER = ("has_preview_decoder",)
"""Numbers of a model in which both sides may differ: either may have been given one alone."""

_CLOSE = 1e-12
"""Relative; C libraries differ in the last bit of a power or a logarithm. The smallest wrong
schedule known, betas without their end point, is 3e-3 away."""


def find_preconditions(bundle: Bundle, prepared: Prepared) -> dict[str, Fact]:
    """What one side of a comparison really uses, by name.

    Args:
        bundle: what runs.
        prepared: its run, before the first step.
    """
    schedule = prepared.schedule
    return {
        **bundle_facts(bundle),
        **{f"token_ids.{name}": ids.tolist() for name, ids in prepared.encoded.input_ids.items()},
        "negative_prompt": _negative_policy(bundle, prepared),
        "time_ids": prepared.conditioning.time_ids.tolist(),
        "guidance_scales": list(prepared.guidance_scales),
        "timesteps": schedule.timesteps.tolist(),
        "timesteps.dtype": str(schedule.timesteps.dtype),
        "sigmas": schedule.sigmas.tolist(),
        "sigmas.dtype": str(schedule.sigmas.dtype),
        "init_noise_sigma": schedule.init_noise_sigma,
        "prediction_type": schedule.prediction_type,
        "latents_variance": schedule.variance,
        "steps": [prepared.part.first, prepared.part.stop],
        **_start_facts(prepared),
    }


def bundle_facts(bundle: Bundle) -> dict[str, Fact]:
    """Those that the configs alone tell: what the model is, and its scheduler."""
    return {**_model_facts(bundle), **_scheduler_facts(bundle)}


def check_preconditions(
    actual: Mapping[str, Fact], expected: Mapping[str, Fact], *, candidate: str, reference: str
) -> None:
    """Refuse to compare what has no common ground.

    Args:
        actual: the candidate's.
        expected: the reference's.
        candidate: its name, for the message.
        reference: its name, for the message.

    Raises:
        IncomparableError: something differs; everything that does is named.
    """
    differing = tuple(
        f"{name} {_short(actual.get(name))} and {_short(expected.get(name))}"
        f"{_where(actual.get(name), expected.get(name))}"
        for name in sorted(actual.keys() | expected.keys())
        if not _same(actual.get(name), expected.get(name))
    )
    if differing:
        raise IncomparableError(candidate=candidate, reference=reference, differences=differing)


def precondition_texts(facts: Mapping[str, Fact]) -> dict[str, str]:
    """The facts in short, for a report: long ones as a hash."""
    return {name: _short(fact) for name, fact in facts.items()}


def array_sha256(array: Array) -> str:
    """Hash of an array's dtype, shape and elements."""
    content = np.asarray(array, order="C")
    digest = hashlib.sha256(f"{content.dtype.str}{list(content.shape)}".encode())
    digest.update(content.tobytes())
    return digest.hexdigest()


def _model_facts(bundle: Bundle) -> dict[str, Fact]:
    numbers = asdict(bundle.config)
    return {f"model.{name}": fact for name, fact in numbers.items() if name not in _MAY_DIFFER}


def _scheduler_facts(bundle: Bundle) -> dict[str, Fact]:
    """Of scheduler_config.json; the names that diffusers keeps for itself start with _."""
    content = read_json(bundle.folder.joinpath(*SCHEDULER_CONFIG))
    return {
        f"scheduler_config.{name}": fact
        for name, fact in content.items()
        if name == "_class_name" or not name.startswith("_")
    }


def _negative_policy(bundle: Bundle, prepared: Prepared) -> str:
    prompts = prepared.settings.prompts
    if not isinstance(prompts, Prompts):
        return "embeddings given"
    if prompts.negative_prompt is None and bundle.config.force_zeros_for_empty_prompt:
        return "zeros"
    return "encoded"


def _start_facts(prepared: Prepared) -> dict[str, Fact]:
    """The latents themselves where no network made them; otherwise what they were made from."""
    start, given = prepared.start, prepared.settings.start
    facts: dict[str, Fact] = {
        "noise_sha256": array_sha256(start.noise),
        "latents_shape": list(start.latents.shape),
    }
    if given is None or given.image is None:
        return {**facts, "first_latents_sha256": array_sha256(start.latents)}
    facts["image_sha256"] = array_sha256(given.image)
    if given.mask is not None:
        facts["mask_sha256"] = array_sha256(given.mask)
    return facts


def _same(actual: Fact, expected: Fact) -> bool:
    """Equal; fractions to the last digits but one."""
    if isinstance(actual, float) and isinstance(expected, float):
        return math.isclose(actual, expected, rel_tol=_CLOSE, abs_tol=0.0)
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        return actual.keys() == expected.keys() and all(
            _same(actual[name], expected[name]) for name in actual
        )
    if _is_list(actual) and _is_list(expected):
        return len(actual) == len(expected) and all(map(_same, actual, expected))
    return type(actual) is type(expected) and actual == expected


def _is_list(fact: Fact) -> TypeIs[Sequence[object]]:
    return isinstance(fact, Sequence) and not isinstance(fact, str)


def _where(actual: Fact, expected: Fact) -> str:
    """The first element at which two lists differ: the rest would fill a screen."""
    if not (_is_list(actual) and _is_list(expected)):
        return ""
    left, right = _flat(actual), _flat(expected)
    if len(left) != len(right):
        return f" ({len(left)} and {len(right)} elements)"
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        if not _same(one, other):
            return f" (first at element {index}: {one} and {other})"
    return ""


def _flat(fact: Fact) -> list[Fact]:
    if _is_list(fact):
        return [leaf for item in fact for leaf in _flat(item)]
    return [fact]


def _short(fact: Fact) -> str:
    text = json.dumps(fact, default=list)
    if len(text) <= 64:
        return text
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
