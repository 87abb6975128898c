"""What the benchmark measures: this package, and others that have the same network, each in a process of its own."""
