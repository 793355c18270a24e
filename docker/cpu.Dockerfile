# plsc on CPUs. From the checkout:
#   docker build -f docker/cpu.Dockerfile -t plsc:cpu .
#   docker run --rm --shm-size=8g -v "$PWD/output:/runs/output" plsc:cpu plsc train -c digits
FROM python:3.12-slim-bookworm

# Paddle links OpenMP's runtime. Debian's version of it is the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/plsc
RUN python -m pip install --no-cache-dir '/opt/plsc[cpu]'

# runs and their output belong to this user; another one is: docker run --user
RUN useradd --create-home --uid 1000 plsc && mkdir /runs && chown plsc /runs
USER 1000
WORKDIR /runs

CMD ["plsc", "--help"]
