"""The service, its batcher and the benchmark. Installed as mmf_deploy.serve."""
