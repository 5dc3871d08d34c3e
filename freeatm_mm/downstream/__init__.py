"""From pretrained weights to benchmarks: running them, converting weights, tiny data sets."""
