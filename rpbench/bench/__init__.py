"""Benchmarks that anybody can run: rpbench's loops against loops written the usual way, on the same machine."""
