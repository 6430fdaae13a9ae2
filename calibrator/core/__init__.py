"""Pure decisions: values in, values out. No clock, no I/O, no event loop (checked by import-linter)."""
