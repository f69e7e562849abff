"""What SDXL is: its checkpoints, components, tokenizers and the inputs worth trying them on."""
