#!/usr/bin/env bash
# Fetches the backup to restore. In earnest this is a download of last night's dump; here the dump is written on the spot.
set -euo pipefail

dump=$(mktemp "${TMPDIR:-/tmp}/orders.XXXXXX.sql")
cat >"$dump" <<'SQL'
create table customers (
    id integer primary key,
    name text not null,
    email text not null unique
);
create table orders (
    id integer primary key,
    customer_id integer not null references customers,
    placed_at timestamptz not null,
    status text not null,
    amount numeric(10, 2) not null
);
insert into customers
    select n, 'Ada Lovelace the ' || n || 'th', 'ada.' || n || '@lovelace.example'
    from generate_series(1, 400) n;
insert into orders
    select n, 1 + n * 7 % 400, timestamptz '2026-01-01' + n * interval '37 minutes',
        (array['new', 'paid', 'sent', 'returned'])[1 + n % 4], (n * 7919 % 100000) / 100.0
    from generate_series(1, 5000) n;
create index on orders (customer_id);
SQL
echo "wrote $(wc -c <"$dump") bytes"
echo "$dump"
