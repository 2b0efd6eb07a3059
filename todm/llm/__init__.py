"""Language models of the transformers library: what compression needs to know of them."""
