"""Metrics of generated samples, each with a test against a case of known answer."""
