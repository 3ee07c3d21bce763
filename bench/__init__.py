"""Benches, run by `mamba-integer bench NAME`. Each module's `run(options)` measures and returns one object; the command prints table and JSON."""
