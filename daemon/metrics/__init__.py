"""The figures of a node: the content of /metrics, /healthz and /readyz, for any process."""
