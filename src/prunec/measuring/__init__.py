"""What models do and how fast: quality on texts and sources, latency in runtimes."""
