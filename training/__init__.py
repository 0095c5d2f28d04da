"""The trainer: the modular objective, data, the loop. Installed as mmf_deploy.training."""
