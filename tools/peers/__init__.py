"""Peers for tests and benchmarks: real programs such as a node, Orthanc, DCMTK and PostgreSQL, and
small servers.
"""
