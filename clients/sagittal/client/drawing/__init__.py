"""Figures by matplotlib. They depend on the content of an explanation, never on the name of its method."""
