"""Faults to survive: roles are killed, disks are full, the archive misbehaves; then everything is
counted.

`python -m tests.chaos` is the long form (`make chaos`), test_chaos.py the short one.
"""
