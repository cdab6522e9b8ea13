"""Real programs to talk to: a node, Orthanc, DCMTK, PostgreSQL. Tests and benchmarks share them."""
