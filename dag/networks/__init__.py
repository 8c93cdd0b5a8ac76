"""The networks under attack, all behind `interface`: one module per family, and what they share."""
