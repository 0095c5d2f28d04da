"""`mmf bench-serve`: load a service, and check every image that comes back."""
