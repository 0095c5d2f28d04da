"""The networks and their samplers: the part of the core that imports torch."""
