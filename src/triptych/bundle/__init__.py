"""Bundles: an ecosystem's own directory layout plus a manifest that says what is in it."""
