"""Masks found by descent: I-GOS, iGOS+, iGOS++ and meaningful perturbation."""
