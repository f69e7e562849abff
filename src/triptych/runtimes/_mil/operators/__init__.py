"""The operators of ML programs, a file a kind. `table.py` lists them by type."""
