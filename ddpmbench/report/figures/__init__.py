"""Figures, a module an idea. Each function returns a figure and the numbers behind it."""
