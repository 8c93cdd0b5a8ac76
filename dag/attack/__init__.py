"""Perturbations: Dense Adversary Generation, and sums, multiples and controls of what it yields."""
