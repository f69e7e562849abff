"""The one sampler, in NumPy: schedules, guidance, solvers and the noise they start from."""
