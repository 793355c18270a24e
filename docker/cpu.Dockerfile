# plsc on CPUs. From the checkout:
#   docker build -f docker/cpu.Dockerfile -t plsc:cpu .
#   mkdir -p output    # or Docker makes the folder, as root's
#   docker run --rm --user "$(id -u):$(id -g)" --shm-size=8g -v "$PWD/output:/runs/output" plsc:cpu plsc train -c digits
FROM python:3.12-slim-bookworm

# Paddle links OpenMP's runtime. Debian's version of it is the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/plsc
RUN python -m pip install --no-cache-dir '/opt/plsc[cpu]'

# runs, their output and what is cached: any user may write here, as with docker run --user "$(id -u):$(id -g)"
RUN useradd --home-dir /runs --uid 1000 plsc && mkdir --mode=1777 /runs
ENV HOME=/runs
USER 1000
WORKDIR /runs

CMD ["plsc", "--help"]
