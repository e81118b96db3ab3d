"""Everything around an RPC: endpoint and TLS, access control, errors, spans, and moving streams."""
