"""Plots of what selectors report."""
