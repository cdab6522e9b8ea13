"""Faults to survive, for real: the roles are killed, the disk is full, the archive misbehaves; then everything is counted.

`python -m tests.chaos` is the long form (`make chaos`), test_chaos.py the short one.
"""
