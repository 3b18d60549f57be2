# Builds the virtual environment in one stage and copies only it into the image that runs.
FROM python:3.11-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# The locked requirements come first, so that a change of the code does not install them again.
COPY requirements/all.txt requirements/build.txt requirements/node.txt requirements/
RUN python -m venv /opt/ampref \
    && /opt/ampref/bin/pip install --require-hashes -r requirements/all.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt -r requirements/node.txt

COPY pyproject.toml README.md LICENSE ./
COPY amp_core amp_core
COPY service service
COPY workers workers
COPY migrations migrations
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/ampref/bin/pip install --no-deps --no-index /dist/*.whl \
    && /opt/ampref/bin/python -m compileall -q /opt/ampref/lib


FROM python:3.11-slim-bookworm

# GL in software, which workers draw thumbnails with; the distribution's own version is meant.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*

# A fixed number, so that volumes and a cluster's security policies can name the user. The folders are made here because
# a new volume takes the owner of the folder that it is mounted over: /data is kept, /scratch is one container's own.
RUN groupadd --system --gid 10001 ampref \
    && useradd --system --uid 10001 --gid ampref --home-dir /data --no-create-home --shell /usr/sbin/nologin ampref \
    && install --directory --owner=ampref --group=ampref --mode=0700 /data /scratch

COPY --from=build /opt/ampref /opt/ampref

ENV PATH=/opt/ampref/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AMPREF_DATA_DIR=/data \
    AMPREF_HOST=0.0.0.0 \
    AMPREF_PORT=8000

USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/scratch"]
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

# SIGTERM lets requests and rollouts end; the job table makes good whatever does not.
STOPSIGNAL SIGTERM
CMD ["ampref", "api"]
