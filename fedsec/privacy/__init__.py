"""Differential privacy: streams, DP-SGD, accounting and the ledger's rules."""
