"""Pictures and benchmarks on disk, as what evaluation needs."""
