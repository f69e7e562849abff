"""Judging a candidate against the PyTorch reference: metrics, comparisons and what they mean."""
