# A service on the CPU, without torch. Build from the repository's root:
#   docker build -t mmf-deploy .
#   docker run -p 8000:8000 mmf-deploy                                   # the embedded digits
#   docker run -p 8000:8000 -v "$PWD/bundles/mine:/bundle:ro" mmf-deploy mmf-serve /bundle --host 0.0.0.0
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 mmf
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mmf_deploy ./mmf_deploy
COPY training ./training
COPY export ./export
COPY serve ./serve
RUN pip install --no-cache-dir -c constraints.txt ".[serve,cpu,sign]"

USER mmf
WORKDIR /home/mmf
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=2s --start-period=10s \
    CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"
# a SIGTERM drains: readiness turns red, everything accepted is answered
STOPSIGNAL SIGTERM
CMD ["mmf-serve", "--host", "0.0.0.0", "--port", "8000"]
