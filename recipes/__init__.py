raise ModuleNotFoundError(
    "recipes/ is not a package: its scripts are run from the shell, and what they share is in todm/"
)
