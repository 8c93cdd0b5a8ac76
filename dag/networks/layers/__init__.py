"""Arithmetic that networks of several families share."""
