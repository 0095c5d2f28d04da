"""The routes by name. Adding one is a new file here and one line in this dict.

Each value is "module:factory"; the factory takes the Service and gives an APIRouter.
"""

ROUTES = {
    "health": "mmf_deploy.serve.routes.health:router",
    "native": "mmf_deploy.serve.routes.native:router",
}
