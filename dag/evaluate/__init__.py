"""What victims see under every perturbation, and how well they still do."""
