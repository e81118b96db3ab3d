"""What every program is made of: starting and stopping, logs, tracing, probes, supervision, an embedded Valkey."""
