"""The Gradio demo: a client of the service, inside its process or elsewhere."""
