"""Faults that a node must survive: killed roles, full disks, a misbehaving archive. After each
round every image and result is accounted for.

`python -m tests.chaos` (`make chaos`) is the long run, test_chaos.py the short run.
"""
