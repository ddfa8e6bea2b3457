"""Chaos: whole runs on a real cluster and a real S3 server, disturbed by a seeded schedule of faults.

    python -m chaos [faults] [--seed 0] [--faults 60] [--kinds node,driver] [--short] [--json FILE]
    python -m chaos kills    [--seed 0] [--kills 20]

The command under test is the ordinary `flashvideo-ray render` in a process of its own, started again until it ends. Its
model is a stand-in (real pipelines of a tiny configuration) that writes down every call, takes its time, and fails at
some prompts.
"""
