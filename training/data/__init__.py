"""The sources of training data, one file each."""
