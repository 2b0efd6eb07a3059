"""Language models of the transformers library, for compression."""
