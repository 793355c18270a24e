# plsc on NVIDIA GPUs. The host needs NVIDIA's driver and its container toolkit; CUDA and cuDNN come with Paddle's packages.
# PADDLE_INDEX is Paddle's own package index for the CUDA version that the driver supports: the address after `-i` in the
# line that its installation page shows, https://www.paddlepaddle.org.cn/en/install/quick. From the checkout:
#   docker build -f docker/gpu.Dockerfile -t plsc:gpu --build-arg PADDLE_INDEX=… .
#   mkdir -p output    # or Docker makes the folder, as root's
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --shm-size=16g -v "$PWD/output:/runs/output" plsc:gpu \
#       plsc train -c digits -o Global.device=gpu
FROM python:3.12-slim-bookworm

# what the container toolkit reads
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Paddle links OpenMP's runtime. Debian's version of it is the base image's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/plsc
ARG PADDLE_INDEX
RUN test -n "$PADDLE_INDEX" || { echo "--build-arg PADDLE_INDEX=… is missing, see the top of this file" >&2; exit 1; } \
    ; python -m pip install --no-cache-dir --extra-index-url "$PADDLE_INDEX" '/opt/plsc[gpu]'

# runs, their output and what is cached: any user may write here, as with docker run --user "$(id -u):$(id -g)"
RUN useradd --home-dir /runs --uid 1000 plsc && mkdir --mode=1777 /runs
ENV HOME=/runs
USER 1000
WORKDIR /runs

CMD ["plsc", "--help"]
