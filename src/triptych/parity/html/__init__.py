"""A parity report as one page for people: nothing it shows comes from anywhere but the report."""
