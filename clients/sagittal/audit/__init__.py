"""Audits: finds spurious reasons of a model in a labelled data set, and confirms them by interventions.

`sagittal audit` is made of these modules. They need the extra `bulk` of the package.
"""
