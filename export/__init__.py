"""Folders for people and devices, one per target."""

raise ImportError(
    "the folder export/ is read by people and devices, not imported: `todm export` and the package "
    "todm.export make bundles, and export/<target>/run.py runs one"
)
