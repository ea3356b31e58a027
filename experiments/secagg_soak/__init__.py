"""The default plan over five seeds, with and without privacy."""
