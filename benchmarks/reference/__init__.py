"""Reference implementations: the published code of the methods, reimplemented with its faults, for comparisons."""
