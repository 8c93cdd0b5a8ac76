"""Predictions of the victims under every perturbation, and their scores."""
