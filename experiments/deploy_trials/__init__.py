"""The deployment, tried for real: units under a running systemd, the image built and run; see README.md."""
