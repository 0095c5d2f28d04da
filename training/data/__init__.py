"""The sources of training data, one file each: a ``Config`` and ``load(Config) -> Source``."""

SOURCES = {
    "digits": "mmf_deploy.training.data.digits",
    "noise": "mmf_deploy.training.data.noise_images",
    "folder": "mmf_deploy.training.data.image_folder",
    "huggingface": "mmf_deploy.training.data.hf_images",
    "torchvision": "mmf_deploy.training.data.torchvision_sets",
    "arrays": "mmf_deploy.training.data.array_files",
    "ring2d": "mmf_deploy.training.data.ring2d",
    "ode": "mmf_deploy.training.data.ode",
    "control": "mmf_deploy.training.data.control",
}
