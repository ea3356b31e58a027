"""Tables, plots and live progress of runs."""
