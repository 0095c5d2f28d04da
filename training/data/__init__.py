"""The sources of training data, one file each: a ``Config`` and ``load(Config) -> Source``."""

SOURCES = {
    "digits": "mmf_deploy.training.data.digits",
    "noise": "mmf_deploy.training.data.noise_images",
}
