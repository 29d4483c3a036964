#!/usr/bin/env bash
# Loads the backup. $1 is the file that the retrieval named, $2 the name of the database's container; PGHOST, PGPORT, PGUSER
# and PGPASSWORD lead plain `psql` to it. (Without psql on the node: docker exec -i "$2" psql -U postgres -d orders <"$1")
set -euo pipefail

trap 'rm -f "$1"' EXIT
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --single-transaction --dbname orders --file "$1"
psql --no-psqlrc --quiet --dbname orders --command 'vacuum analyze'
