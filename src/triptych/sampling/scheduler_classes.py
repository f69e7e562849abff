"""What each of diffusers' scheduler classes can be told, and what it takes when told nothing.

Source: diffusers 0.39, the signatures of the classes' __init__; held to them by
tests/reference/test_scheduler_config_against_diffusers.py.
"""

from collections.abc import Mapping
from math import inf
from types import MappingProxyType

_ZERO_SNR = {"rescale_betas_zero_snr": False}
_RESPACED = {f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta")}
_PIXELS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DISTILLED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    **_CLIP,
    "clip_sample": False,
    **_PIXELS,
    **_ZERO_SNR,
}

CLASS_SETTINGS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "EulerDiscreteScheduler": {
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            **_ZERO_SNR,
            "sigma_min": None,
            "sigma_max": None,
            "final_sigmas_type": "zero",
            **_RESPACED,
        },
        "EulerAncestralDiscreteScheduler": {**_ZERO_SNR},
        "HeunDiscreteScheduler": {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            **_CLIP,
            "clip_sample": False,
            **_RESPACED,
        },
        "LMSDiscreteScheduler": {**_RESPACED},
        "DDIMScheduler": {
            "timestep_spacing": "leading",
            "set_alpha_to_one": True,
            **_CLIP,
            **_PIXELS,
            **_ZERO_SNR,
        },
        "DDPMScheduler": {
            "timestep_spacing": "leading",
            "variance_type": "fixed_small",
            **_CLIP,
            **_PIXELS,
            **_ZERO_SNR,
        },
        "PNDMScheduler": {
            "timestep_spacing": "leading",
            "set_alpha_to_one": False,
            "skip_prk_steps": False,
        },
        "DPMSolverMultistepScheduler": {
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "final_sigmas_type": "zero",
            "use_lu_lambdas": False,
            "lambda_min_clipped": -inf,
            "variance_type": None,
            **_RESPACED,
            **_PIXELS,
            **_ZERO_SNR,
            **_FLOW,
        },
        "UniPCMultistepScheduler": {
            "solver_order": 2,
            "predict_x0": True,
            "solver_type": "bh2",
            "lower_order_final": True,
            "disable_corrector": (),
            "final_sigmas_type": "zero",
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
            "solver_p": None,
            **_RESPACED,
            **_PIXELS,
            **_ZERO_SNR,
            **_FLOW,
        },
        "LCMScheduler": _DISTILLED,
        "TCDScheduler": _DISTILLED,
    }
)
"""Settings of each class beyond the common ones, and defaults that differ from Euler's."""
