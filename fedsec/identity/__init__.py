"""Who is who: names, certificates, and the signed list of a federation's clients."""
