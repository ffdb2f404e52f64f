# calmctl in a container, from Debian and the package registries.
#
#   docker build -t calmctl .                                      torch with CUDA, every package by the lock's hashes
#   docker build -t calmctl --build-arg TORCH_INDEX=ADDRESS .      torch from that index first, such as PyTorch's own of CPU builds
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" calmctl demo
#   docker run --rm --gpus all -v "$PWD:/work" calmctl train recipes/msrvtt.yaml
FROM debian:trixie-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=""
COPY . /src
WORKDIR /src
# The lock's hashes are those of the CUDA builds: another torch cannot be installed by them, and then the rest goes by
# the ranges of pyproject.toml.
RUN python3 -m venv /opt/calmctl \
    && /opt/calmctl/bin/pip install --quiet uv \
    && if [ -n "$TORCH_INDEX" ]; then \
           /opt/calmctl/bin/uv pip install --python /opt/calmctl/bin/python --index-url "$TORCH_INDEX" torch \
           && /opt/calmctl/bin/uv pip install --python /opt/calmctl/bin/python . ; \
       else \
           /opt/calmctl/bin/uv pip install --python /opt/calmctl/bin/python --require-hashes -r requirements.lock \
           && /opt/calmctl/bin/uv pip install --python /opt/calmctl/bin/python --no-deps --no-build-isolation . ; \
       fi \
    && rm -rf /root/.cache

ENV PATH=/opt/calmctl/bin:$PATH HOME=/tmp
WORKDIR /work
ENTRYPOINT ["calmctl"]
CMD ["--help"]
