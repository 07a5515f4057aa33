# Stands for redis:8: Debian's server, with the user, the folder and the entrypoint of the official image.
FROM rstore-standin/servers
RUN install --directory --owner=redis --group=redis /data
COPY redis-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /data
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["redis-server"]
