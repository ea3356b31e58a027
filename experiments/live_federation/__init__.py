"""A live federation on loopback: every part a process of its own; see ``run.py``."""
