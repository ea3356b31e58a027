"""Models, their parameters and their evaluation."""
