"""What makes the Markdown of a section from a result file; benchmarks/render.py says which.

Each function takes the content of the file and the link to it from the page.
"""
