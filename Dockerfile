# The worker of workers/, and beat: see docker-compose.yml.
FROM python:3.13-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

# The lock changes less often than the code: its layer is kept.
COPY requirements/run.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.txt

COPY omni_tasks/ omni_tasks/
COPY workers/ workers/

# Made here, so that a new volume mounted on it belongs to the user too.
RUN useradd --system --uid 10001 omni && mkdir /articles && chown omni /articles
USER omni

CMD ["celery", "-A", "workers", "worker", "--loglevel", "INFO"]
