"""Alerts without Prometheus: which troubles there are, and how a message reaches people."""
