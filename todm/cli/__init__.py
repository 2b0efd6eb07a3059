"""The command line: `main` and one file per verb, which parses, calls one function and prints."""
