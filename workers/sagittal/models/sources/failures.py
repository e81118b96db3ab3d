"""What goes wrong when a model is loaded."""


class ModelUnavailable(Exception):
    """A model cannot be loaded; the message says why and what to do."""
