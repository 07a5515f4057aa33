"""Append events with pyeventsourcing for some seconds: one writer, in process, each event a commit of its own.

    python eventsourcing_appends.py sqlite PATH SECONDS
    python eventsourcing_appends.py postgresql HOST:PORT:USER:DATABASE SECONDS

It prints the rate, as JSON. The recorder is used as its documentation shows, below aggregates and their mapper, so that
nothing is measured but the store.
"""

import json
import sys
import time
from uuid import uuid4

from eventsourcing.persistence import StoredEvent  # type: ignore[import-not-found]

kind, place, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
if kind == "sqlite":
    from eventsourcing.sqlite import SQLiteAggregateRecorder, SQLiteDatastore  # type: ignore[import-not-found]

    datastore = SQLiteDatastore(place)
    recorder = SQLiteAggregateRecorder(datastore)
else:
    from eventsourcing.postgres import PostgresAggregateRecorder, PostgresDatastore  # type: ignore[import-not-found]

    host, port, user, name = place.split(":")
    datastore = PostgresDatastore(dbname=name, host=host, port=port, user=user, password="")
    recorder = PostgresAggregateRecorder(datastore, events_table_name="stored_events")
recorder.create_table()

originator = uuid4()
version = 0
started = time.perf_counter()
end = started + seconds
while time.perf_counter() < end:
    version += 1
    state = json.dumps({"item": version}).encode()
    recorder.insert_events([StoredEvent(originator, version, "benchmark:Changed", state)])
print(json.dumps({"per_second": version / (time.perf_counter() - started)}))
datastore.close()
