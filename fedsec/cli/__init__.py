"""The command line; one file per command group, imports inside the commands."""
