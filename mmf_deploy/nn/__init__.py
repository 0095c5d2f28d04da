"""The networks and the samplers that run them; the only core modules, with engines/torch_engine.py, that import torch."""
