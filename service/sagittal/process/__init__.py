"""Parts common to all programs: starting and stopping, logs, tracing, probes, supervision and an embedded Valkey."""
