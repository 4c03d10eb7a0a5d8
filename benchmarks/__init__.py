"""Benchmarks of shtopk: `python -m benchmarks NAME [--quick]` regenerates benchmarks/results/NAME.*."""
