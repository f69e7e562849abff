"""Datasets of pictures at several steps for thousands of prompts: their files, and what is missing.

Nothing here samples. A run may be killed at any moment and several may work on one folder: what is
done is read from the files and from the ledgers beside them, never from a count.
"""
