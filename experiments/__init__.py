"""Experiments: one folder per question, and ``bench`` for claims of speed."""
