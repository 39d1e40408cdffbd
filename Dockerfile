# tokprune serve, CPU only. The image has neither a compiler nor torch.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --wheel-dir /wheels "/src[serve]"

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl \
    && useradd --create-home --uid 10001 tokprune
USER tokprune
EXPOSE 8080
HEALTHCHECK --interval=10s --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
# Within the container, loopback would reach nobody; publish the port on the host's.
ENTRYPOINT ["tokprune", "serve", "--host", "0.0.0.0"]
