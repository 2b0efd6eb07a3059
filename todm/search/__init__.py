"""Budgets, costs, and the subnet that a budget picks."""
