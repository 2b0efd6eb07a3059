"""The model: encoder, transducer, its streaming form, and what exports and searches need of them."""
