"""mmf-deploy: train a one-step image generator, export it, serve it in milliseconds."""

__version__ = "0.1.0"
