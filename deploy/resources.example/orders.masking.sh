#!/usr/bin/env bash
# Takes personal data out before the snapshot is made. If it fails there is no snapshot.
set -euo pipefail

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname orders <<'SQL'
update customers set name = 'Customer ' || id, email = 'customer.' || id || '@example.com';
vacuum full customers; -- the old rows are not left in the files either
SQL
