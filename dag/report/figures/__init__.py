"""Figures, one module for every kind; each takes arrays or frames and returns a matplotlib Figure."""
