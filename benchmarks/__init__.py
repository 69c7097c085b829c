"""Measures model servers side by side: `python -m benchmarks`, described in README.md.

The parts, in the order of a run: `plan` (what is to be measured) from `works` and a YAML file;
`servers` (how each one is started and spoken to); `runner` (interleaved rounds) with `load` (the
clients) and `machine` (CPU time, memory, noise); `results` (the rows); `report` and `plots`.
"""
