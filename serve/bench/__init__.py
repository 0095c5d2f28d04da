"""`mmf bench`: latency per image, against PyTorch and against what the machine can do."""
