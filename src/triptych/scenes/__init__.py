"""Simple pictures that can be described, drawn and read back: what the demo model was trained on.

A `Scene` is what a picture shows, `caption` says it in words, `draw` paints it, and `read_scene`
tells from a picture what it shows. So the prompt adherence of a model can be measured.
"""
