"""The miniature's versions of the paper's networks, and their training."""
