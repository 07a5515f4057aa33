# Stands for postgres:17: Debian's server, with the folders, the variables and the entrypoint of the official image.
FROM rstore-standin/servers
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PGDATA=/var/lib/postgresql/data
RUN install --directory --owner=postgres --group=postgres --mode=3777 /var/run/postgresql \
    && install --directory --owner=postgres --group=postgres --mode=1777 "$PGDATA" \
    && sed -i "s/^#\?listen_addresses = .*/listen_addresses = '*'/" /usr/share/postgresql/17/postgresql.conf.sample
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
