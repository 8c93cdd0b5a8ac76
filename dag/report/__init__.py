"""Tables, figures, claims and pages from scores and shards."""
