"""The routes by name. Adding one is a new file here and one line in this dict.

Each value is "module:factory"; the factory takes the Service and gives an APIRouter.
"""

ROUTES = {
    "health": "mmf_deploy.serve.routes.health:router",
    "metrics": "mmf_deploy.serve.routes.metrics:router",
    "native": "mmf_deploy.serve.routes.native:router",
    "images": "mmf_deploy.serve.routes.images:router",
    "interpolate": "mmf_deploy.serve.routes.interpolate:router",
    "trajectory": "mmf_deploy.serve.routes.trajectory:router",
    "openai": "mmf_deploy.serve.routes.openai:router",
    "kserve": "mmf_deploy.serve.routes.kserve:router",
}
