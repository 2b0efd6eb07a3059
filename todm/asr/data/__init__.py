"""Training data: batches, their order and where they come from, features, augmentation."""
