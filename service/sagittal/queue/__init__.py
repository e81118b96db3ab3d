"""The queue of jobs on Redis: its promises (`protocol`), both sides of it (`jobs`, `leases`), and its scripts."""
