"""The specifications typed in: numbers, dtypes and size asserts, nothing else."""
