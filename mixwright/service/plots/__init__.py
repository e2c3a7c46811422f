"""Plots of what selectors and evaluations report."""
