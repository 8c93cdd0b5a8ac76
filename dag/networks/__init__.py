"""Attacked networks with a common `interface`: one module per family, and shared components."""
