"""The `sagittal` command."""
