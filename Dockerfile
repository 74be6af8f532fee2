# One training job as an image: docs/image.md says how to build it, docs/container.md how to run it, and why it is as it is.
#
# torch's wheels bring CUDA 13 themselves, so the base image only says which driver is needed. Any Debian or Ubuntu does.
# The digest is that of the tag's index of platforms; docs/image.md says how to look up a newer one.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701

# Wheels that no index offers may come from a folder: docker build --build-context wheels=FOLDER
FROM scratch AS wheels

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
# Python as the distribution has it (3.11 or newer), and an init that passes signals on. The versions are the base's choice.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca_bundle,target=/run/ca.pem \
    if ! { command -v python3 && command -v tini; } >/dev/null; then \
      if [ -s /run/ca.pem ]; then echo 'Acquire::https::CaInfo "/run/ca.pem";' >/etc/apt/apt.conf.d/99ca; fi; \
      apt-get update; \
      DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 tini; \
      rm -rf /etc/apt/apt.conf.d/99ca /var/lib/apt/lists/* /var/cache/apt /var/cache/ldconfig/aux-cache /var/log/*; \
    fi

# Everything the job imports, in a virtual environment without pip.
FROM base AS deps
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca_bundle,target=/run/ca.pem \
    if ! python3 -c 'import ensurepip' 2>/dev/null; then \
      if [ -s /run/ca.pem ]; then echo 'Acquire::https::CaInfo "/run/ca.pem";' >/etc/apt/apt.conf.d/99ca; fi; \
      apt-get update; \
      DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv; \
    fi; \
    python3 -m venv /opt/pip; \
    python3 -m venv --without-pip /opt/venv
ARG REQUIREMENTS=requirements-cuda.txt
# Where torch's CPU build is, unless the folder of wheels has it. Not asked for CUDA's, which is on PyPI.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# TRACKERS=1 adds what --trackers needs, TAGGER=1 what `caption` needs for a tagger.
ARG TRACKERS=
ARG TAGGER=
COPY requirements-common.txt requirements-cpu.txt requirements-cuda.txt requirements-tagger.txt \
  requirements-trackers.txt /locks/
# Of CUDA's files those go that no library here is linked to or opens by name, but for a profiler's; and Triton, which torch
# does without: it would need a C compiler here, to which torch's outer products would then lead.
# Bytecode is bound to the sources' hashes instead of their times, so that it stays valid, and equal, in any image; without
# site packages (-S), as what the compiler itself has imported changes its output.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/ca.pem \
    case "${REQUIREMENTS}-$(echo /wheels/torch-*.whl)" in \
      requirements-cpu.txt-*'*'*) set -- --extra-index-url "${TORCH_CPU_INDEX}" ;; \
      requirements-cpu.txt-*) set -- --find-links /wheels ;; \
      *) set -- ;; \
    esac; \
    if [ -s /run/ca.pem ]; then export PIP_CERT=/run/ca.pem; fi; \
    /opt/pip/bin/pip --disable-pip-version-check --python /opt/venv/bin/python install --no-compile --no-deps \
      --require-hashes "$@" -r "/locks/${REQUIREMENTS}"; \
    /opt/pip/bin/pip --disable-pip-version-check --python /opt/venv/bin/python check; \
    if [ -n "${TRACKERS}" ]; then \
      /opt/pip/bin/pip --disable-pip-version-check --python /opt/venv/bin/python install --no-compile --no-deps \
        --require-hashes -r /locks/requirements-trackers.txt; \
    fi; \
    if [ -n "${TAGGER}" ]; then \
      /opt/pip/bin/pip --disable-pip-version-check --python /opt/venv/bin/python install --no-compile --no-deps \
        --require-hashes -r /locks/requirements-tagger.txt; \
    fi; \
    site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'); \
    find "${site}" -depth -type d \( -name tests -o -name include \) -exec rm -rf {} +; \
    find "${site}" \( -name '*.a' -o -name '*.pyc' \) -delete; \
    rm -rf "${site}"/torch/test "${site}"/torch/share "${site}"/torch/bin/protoc* \
      "${site}"/pyarrow/*flight*; \
    rm -rf "${site}"/triton "${site}"/triton-*.dist-info; \
    find "${site}" -path '*/nvidia/*' \( -name '*.alt.so.*' -o -name 'libcusolverMg.*' -o -name 'libnvperf_*' \
      -o -name 'libcufftw.*' -o -name 'libnvblas.*' -o -name 'libpcsamplingutil.*' -o -name 'libcheckpoint.*' \
      -o -name '*.bc' \) -delete; \
    python3 -S -m compileall -q -j 0 --invalidation-mode unchecked-hash -x py312_ "${site}"

FROM base AS code
COPY entrypoint.py LICENSE /app/
COPY schema /app/schema
COPY assets/base-emoji /app/assets/base-emoji
COPY assets/datasets/emoji-high-contrast /app/assets/datasets/emoji-high-contrast
COPY assets/LICENSE-* assets/README.md /app/assets/
COPY examples /app/examples
COPY engine /app/engine
RUN python3 -S -m compileall -q --invalidation-mode unchecked-hash /app/entrypoint.py /app/engine /app/examples; \
    chmod -R u=rwX,go=rX /app

FROM base AS runtime
# Any user may write here, whoever `--user` names; what is mounted over them brings its own owner and mode.
# The only set-user-ID program is the copy of Python by which the image's user becomes the owner of /out: engine/commands/container.py.
RUN mkdir -m 1777 /out /cache; mkdir /task; \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    python=$(readlink -f "$(command -v python3)"); rise=${python%/*}/sd-lora-task-rise; \
    install -o 0 -g 10001 -m 4750 "${python}" "${rise}"; \
    mkdir -p /usr/local/libexec; ln -s "${rise}" /usr/local/libexec/sd-lora-task-rise
COPY --from=deps /opt/venv /opt/venv
COPY --from=code /app /app
# SAFEPATH: nothing that lies in the task's folder can be imported. USER: PyTorch asks for a name that any UID has.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=job \
    SD_LORA_TASK_IN_IMAGE=1 \
    HF_HOME=/cache/huggingface \
    CUBLAS_WORKSPACE_CONFIG=:4096:8 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /task
STOPSIGNAL SIGTERM
# Not root, which Kubernetes' runAsNonRoot would refuse; a number, as a name proves nothing to it.
USER 10001:10001
# It becomes the owner of /out, then starts tini, which passes signals on to all of the job's processes. Until Python can
# handle them they are blocked: the kernel drops those that process 1 neither handles nor blocks.
ENTRYPOINT ["env", "--block-signal=TERM,INT", "python", "/app/entrypoint.py", "container-start"]
ARG BASE_IMAGE
ARG BASE_DIGEST=
ARG SOURCE=
ARG VERSION=0.1.0
ARG REVISION=unknown
# What the job says that it is: in its log and in result.json.
ENV SD_LORA_TASK_REVISION=${REVISION}
# The program is under Apache-2.0. PyAV's wheel brings FFmpeg (LGPL) with x264 and x265 (GPL), which are never run: docs/image.md.
LABEL org.opencontainers.image.title="sd-lora-task" \
      org.opencontainers.image.description="Stable Diffusion LoRA training as one exact, resumable job" \
      org.opencontainers.image.licenses="Apache-2.0 AND LGPL-3.0-or-later AND GPL-2.0-or-later" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
