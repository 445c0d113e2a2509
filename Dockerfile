# syntax=docker/dockerfile:1
# Three images:
#
#   docker build --target cpu    -t robust-export:cpu .      `robust-export serve` on CPUs
#   docker build --target serve  -t robust-export:serve .    Triton with TensorRT and the plugin
#   docker build --target export -t robust-export:export .   builds and verifies engines on the machine with the GPU
#
# Base images are pinned by tag. To pin them by digest (`docker buildx imagetools inspect IMAGE` prints it):
#   --build-arg DEBIAN=debian:bookworm-slim@sha256:...
# `export` and `serve` use the same NVIDIA release: engines built in one run in the other.

ARG DEBIAN=docker.io/library/debian:12.12-slim
ARG NVIDIA_RELEASE=25.10
ARG TENSORRT=nvcr.io/nvidia/tensorrt:${NVIDIA_RELEASE}-py3
ARG TRITON=nvcr.io/nvidia/tritonserver:${NVIDIA_RELEASE}-py3


# --- cpu: build stage
FROM ${DEBIAN} AS cpu-build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The base pins the Debian release; packages are those of the latest security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get upgrade -y \
    && apt-get install -y --no-install-recommends \
        ca-certificates cmake debian-archive-keyring g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/build.lock requirements/serve.lock requirements/
RUN python3 -m venv tools \
    && tools/bin/pip install --require-hashes -r requirements/build.lock \
    && python3 -m venv --without-pip /app \
    && tools/bin/pip --python /app/bin/python install --require-hashes --no-deps -r requirements/serve.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY plugins plugins
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && tools/bin/pip --python /app/bin/python install --no-deps wheels/*.whl
RUN ROBUST_EXPORT_CACHE=/build/cache /app/bin/robust-export plugins build \
    && install -D -m 644 -t /app/lib/sparta cache/plugins/*/libsparta_ort.so \
    && find /app/bin -type f -not -name robust-export -delete
# The root file system has only these paths and the libraries they link: no shell, no package manager.
COPY deploy/docker/rootfs.py deploy/docker/
RUN python3 deploy/docker/rootfs.py /rootfs /app /usr/bin/python3 /usr/lib/python3.11 \
    /etc/ssl/certs/ca-certificates.crt

# --- cpu: final image
FROM scratch AS cpu
COPY --from=cpu-build /rootfs /
ENV PATH=/app/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ROBUST_EXPORT_CACHE=/tmp/robust-export \
    ROBUST_EXPORT_ORT_LIBRARY=/app/lib/sparta/libsparta_ort.so
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-I", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["robust-export"]
CMD ["serve", "--host", "0.0.0.0", "--model", "/bundle"]


# --- serve: the plugin, built against the TensorRT of the server's image
FROM ${TRITON} AS plugin
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Compute capabilities without the point, for example 80;89;90; the newest also gets PTX.
ARG CUDA_ARCHITECTURES=75-real;80-real;86-real;89-real;90-real;100-real;120
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY plugins plugins
RUN headers=$(dirname "$(find /usr/include /usr/local -name NvInferRuntime.h -print -quit)") \
    && test -f "${headers}/NvInferRuntime.h" \
    && cmake -S plugins -B made -DSPARTA_CUDA=ON -DSPARTA_TRT_INCLUDE="${headers}" \
        -DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES}" \
    && cmake --build made --target sparta_trt --parallel \
    && install -D -m 644 -t /plugins made/tensorrt/libsparta_trt.so

# --- serve: the server's image without shells, compilers and unused backends
FROM ${TRITON} AS serve-root
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY deploy/docker/strip.py /strip.py
COPY --from=plugin /plugins /plugins
RUN python3 /strip.py /

FROM scratch AS serve
# One layer, so that removed files are not in a lower one.
# hadolint ignore=DL3067
COPY --from=serve-root / /
ENV PATH=/opt/tritonserver/bin:/usr/bin \
    LD_LIBRARY_PATH=/opt/tritonserver/backends/onnxruntime:/usr/local/cuda/compat/lib:/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    UCX_MEM_EVENTS=no \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["/usr/bin/python3", "-I", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["/opt/tritonserver/bin/tritonserver"]
CMD ["--model-repository=/models", "--disable-auto-complete-config", \
    "--backend-config=tensorrt,plugins=/plugins/libsparta_trt.so"]


# --- export: builds engines on the machine whose GPU will run them
FROM ${TENSORRT} AS export
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# The base image constrains pip to its own package versions; the lock file replaces that.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/build.lock requirements/export.lock requirements/
# --system-site-packages: TensorRT's Python package is that of the image.
RUN python3 -m venv tools \
    && tools/bin/pip install --require-hashes -r requirements/build.lock \
    && python3 -m venv --system-site-packages /app \
    && /app/bin/pip install --ignore-installed --require-hashes --no-deps -r requirements/export.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY plugins plugins
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && /app/bin/pip install --no-deps wheels/*.whl
ENV PATH=/app/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin \
    CUDACXX=/usr/local/cuda/bin/nvcc \
    ROBUST_EXPORT_CACHE=/app/cache
ARG CUDA_ARCHITECTURES=75-real;80-real;86-real;89-real;90-real;100-real;120
RUN ROBUST_EXPORT_CUDA_ARCHS="${CUDA_ARCHITECTURES}" robust-export plugins build \
    && robust-export plugins info \
    && test -n "$(find /app/cache -name libsparta_trt.so)"
USER 65532:65532
WORKDIR /data
ENV HOME=/tmp
HEALTHCHECK NONE
ENTRYPOINT ["robust-export"]
CMD ["--help"]
