"""Linux calls that the standard library lacks, and the process's own place on the host."""
