# Stands for python:3.11-slim: Debian with its Python, and an index of the locked wheels, so that a build needs no network.
FROM rstore-standin/python
COPY . /opt/index
RUN printf '[global]\nno-index = true\nfind-links = /opt/index\n' >/etc/pip.conf
