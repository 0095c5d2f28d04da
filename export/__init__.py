"""From a checkpoint to a verified bundle. Installed as mmf_deploy.export."""
