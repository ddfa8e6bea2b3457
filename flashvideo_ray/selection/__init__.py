"""Scores to decisions: rules, best of N, and how well scores foretell. Pure functions over tables."""
