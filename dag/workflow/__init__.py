"""What serves every stage: the configuration and what follows from it, shards, locks, the start of a job."""
