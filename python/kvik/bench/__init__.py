"""What `kvik bench` measures: this engine and onnxruntime, alternately, in one run.

- engines.py: the two engines behind one interface
- memory.py: load time and peak memory of each, in a process of its own
- machine.py: what the machine is, and the two ceilings that it sets
- measure.py: the run
- profile.py, profile_report.py: the time of each operator (`kvik bench --profile`)
- ties.py: when engines may choose different tokens
- report.py: the record of a run, as JSON and as tables
"""
