"""From pretrained weights to the frameworks' benchmarks: running them, converting, tiny data sets."""
