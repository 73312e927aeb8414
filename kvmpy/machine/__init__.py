"""One machine: built, run, ended; and what this host makes of it."""
