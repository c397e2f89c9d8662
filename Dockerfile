# One image for all of docker-compose.yml and ops/kubernetes: worker, beat, exporter, Flower, the demo's provider.
FROM python:3.13-slim AS build
WORKDIR /src

# The lock changes less often than the code: its layer is kept.
COPY requirements/run.txt requirements/
RUN python -m venv --without-pip /opt/omni \
    && pip --python /opt/omni install --no-cache-dir --no-deps --require-hashes --requirement requirements/run.txt

# The lock of the tests has the build backend too, with its hashes.
COPY requirements/dev.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY omni_tasks/ omni_tasks/
RUN pip --python /opt/omni install --no-cache-dir --no-deps --build-constraint requirements/dev.txt .


FROM python:3.13-slim

ENV PATH=/opt/omni/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

# Nothing is installed into a running container.  /articles is made here, so that a new volume mounted on it belongs to
# the user too.
RUN pip uninstall --yes pip \
    && useradd --system --uid 10001 omni \
    && mkdir /articles && chown omni /articles
COPY --from=build /opt/omni /opt/omni
COPY workers/ workers/
COPY demo/ demo/
USER 10001

# Of the worker; whatever else runs from this image brings its own.  A ping goes through the broker and back.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD celery -A workers inspect ping --timeout 5 --destination "celery@$HOSTNAME" || exit 1

CMD ["celery", "-A", "workers", "worker", "--loglevel", "INFO"]
