"""The speech backend: corpora, features, the transducer, its loss, decoding and error rates."""
