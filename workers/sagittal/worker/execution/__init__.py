"""Execution of a job on this worker, from its lease to its last event."""
