"""Figures by matplotlib: what is drawn depends on what an explanation holds, never on its method's name."""
