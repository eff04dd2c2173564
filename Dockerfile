# The image of a run on a cluster. Build and push it from the checkout:
#   docker build -t IMAGE . && docker push IMAGE
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 vdt && mkdir /vdt && chown vdt /vdt
WORKDIR /vdt

# What vdt needs, in a layer of its own, which changes with these two files alone.
COPY setup.py constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt setuptools wheel \
    && pip install --no-cache-dir --no-build-isolation -c constraints.txt '.[tpu,cloud,gcs]' \
    && rm -rf build

COPY vdt vdt
COPY data_pipelines data_pipelines
COPY experiments experiments
RUN pip install --no-cache-dir --no-build-isolation --no-deps -e .
USER vdt
