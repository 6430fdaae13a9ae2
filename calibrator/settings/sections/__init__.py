"""The parts of the configuration file, one section a file.

Does:      declares keys with unit, bounds, default and meaning; turns a section into the frozen policy of `core`.
Comes in:  one mapping of the YAML file.
Goes out:  validated values; problems with cause and remedy.
Imports:   `settings.values`, `settings.problems`, `ports`, `core`; the tree imports the sections.
"""
