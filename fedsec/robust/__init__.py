"""Validation of updates and the rules that aggregate them."""
