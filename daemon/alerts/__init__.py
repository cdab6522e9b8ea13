"""Alerts without Prometheus: which troubles there are, and the way of a message to people."""
