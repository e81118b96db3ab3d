"""What surrounds each call: endpoint and TLS, access, errors, spans, streams that move."""
