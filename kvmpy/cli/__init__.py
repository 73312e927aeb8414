"""The command line: one module per verb.

A verb is a function.  Its parameters, annotated for typer, are the one declaration of its options, and two readers
understand it: `full` is typer itself, and `plain` reads the plain cases without importing typer, which would take
longer than the start of a machine.
"""
