"""The stages: one file a verb, one function from artifact to artifact."""
