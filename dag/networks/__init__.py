"""The networks under attack: one module per family, all behind `interface`."""
