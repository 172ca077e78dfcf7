# One image for every process of the demonstration project: web, worker, Celery's worker, beat.
FROM python:3.13-slim
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home app
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY django_jobs ./django_jobs
RUN pip install ".[demo,celery]" "celery[redis]>=5.7"
COPY manage.py ./
COPY testproject ./testproject
RUN chown app /app
USER app
# As the first process in its container each command gets SIGTERM itself, from `docker stop`.
CMD ["python", "manage.py", "runjobs"]
