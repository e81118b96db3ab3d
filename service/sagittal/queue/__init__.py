"""The job queue on Redis: its guarantees (`protocol`), the service's side (`jobs`) and the workers' side (`leases`)."""
