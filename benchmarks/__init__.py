"""What the speed claims rest on: this engine and its peers on the same weights, in one run.

- models.py: transformers models of known shapes with seeded random weights, exported plainly
- workspace.py: where a model's checkpoint and every peer's converted form of it lie
- peers/: one module for each engine, behind the interface of peers/base.py
- worker.py: one engine in a process of its own; client.py: the other end of its pipe
- rounds.py: taking turns; entries.py: what is kept; markdown.py, options.py, machine.py: the rest
  that all benchmarks have in common
- plan.py: what to measure; run.py: prompts and tokens; check.py: were the tokens right
- results.py: the record of a run; table.py and plots.py: for people
- encoders/: the same for models that read whole inputs, and for translation
- quality.py: what low precision does to a trained model; bench_kernels.cpp: single kernels

    python -m benchmarks --help
"""
