"""Models that read whole inputs, and translation: kvik and its peers on the same weights.

- plan.py: what to measure; inputs.py: the numbers that go in; operations.py: the work it takes
- models.py: BERT, ViT and the Transformer with seeded random weights, exported plainly
- engines/: one module for each engine, behind the interface of engines/base.py
- worker.py: one engine in a process of its own; run.py: the rounds, taking turns
- check.py: were the outputs right; results.py: the record of a run; table.py: for people

    python -m benchmarks.encoders --help
"""
