"""Passes that train: tuning with distillation, QAT, SR-STE."""
