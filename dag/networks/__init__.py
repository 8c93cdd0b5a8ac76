"""The networks under attack, with one `interface`: one module per family, and shared parts."""
