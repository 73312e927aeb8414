# kvmpy as a container: docker run --rm -it --device /dev/kvm kvmpy boot
# Packages are not pinned: a rebuild is meant to take security updates.
# The same Debian for both stages, so that what is compiled in the first runs in the second.
FROM debian:12-slim AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m venv /opt/kvmpy && /opt/kvmpy/bin/pip install --no-cache-dir ".[images,debug]"

FROM debian:12-slim
# busybox-static is what the default initramfs is made around; the rest gets and unpacks a kernel.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends busybox-static python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/kvmpy /opt/kvmpy
ENV PATH=/opt/kvmpy/bin:$PATH
ENTRYPOINT ["kvmpy"]
CMD ["--help"]
