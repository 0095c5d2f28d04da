"""Weights from elsewhere: public checkpoints, renamed weight files, a user's own network."""
