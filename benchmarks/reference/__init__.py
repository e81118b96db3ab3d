"""The published code of the methods as it runs, reimplemented with its faults: what the product is compared with."""
