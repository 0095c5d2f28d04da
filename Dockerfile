# The service. Two targets, both without torch; build from the repository's root:
#   docker build -t mmf .                        # cpu, the default
#   docker build -t mmf-gpu --target gpu .
#   docker run -p 8000:8000 mmf                  # the digits bundle that is inside
#   docker run -p 8000:8000 -v "$PWD/bundles/mine:/bundle:ro" mmf
# docs/deploying.md says how to run it with a read-only root and no capabilities.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mmf_deploy ./mmf_deploy
COPY training ./training
COPY export ./export
COPY serve ./serve
# the service gets an environment without pip; what is tested is what is installed
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /opt/wheel . \
    && python -m venv --without-pip /opt/venv

FROM build AS install-cpu
RUN set -- /opt/wheel/*.whl \
    && pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt \
        "${1}[serve,cpu,sign]"

# CUDA and cuDNN come as Python packages with ONNX Runtime, in the versions it was built for.
# A CUDA base image would bring them a second time, and tie its version to ours; the host brings
# the driver either way.
FROM build AS install-gpu
RUN set -- /opt/wheel/*.whl \
    && pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt \
        "${1}[serve,gpu,sign]"

FROM python:${PYTHON}-slim AS service
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mmf-deploy" \
      org.opencontainers.image.description="Serves one-step image generators" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mmf
# /tmp is all that is ever written to, and only by caches
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MMF_SERVE_HOST=0.0.0.0 \
    MMF_SERVE_PORT=8000 \
    MMF_SERVE_LOG_FORMAT=json
COPY mmf_deploy/assets/digits /bundle
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
# a SIGTERM drains: readiness turns red, everything accepted is answered
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-I", "-c", \
    "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['MMF_SERVE_PORT']), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["mmf-serve", "/bundle"]

FROM service AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_CACHE_PATH=/tmp/cache/cuda
COPY --from=install-gpu /opt/venv /opt/venv

# the last stage is what is built without --target
FROM service AS cpu
COPY --from=install-cpu /opt/venv /opt/venv
