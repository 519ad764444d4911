"""The compiled-Python kit: the only importer of numba."""
