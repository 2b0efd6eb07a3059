"""The report of a run: tables, plots, and one HTML page with all of it."""
