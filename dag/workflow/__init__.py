"""Shared by all stages: configuration, job graph and parameters, shards, locks, start of a job."""
