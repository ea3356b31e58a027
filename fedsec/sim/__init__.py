"""Faults and attacks for simulations; knows nothing of Flower."""
