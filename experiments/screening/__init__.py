"""Calibrated spectral screening under attack: accuracy, rejection and honest rejection, paired over seeds."""
