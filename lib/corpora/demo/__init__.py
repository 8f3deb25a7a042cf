"""Invented speakers, rendered by espeak-ng into the layouts of Common Voice and VoxCeleb."""
