create table orders (
    id integer primary key,
    customer_id integer not null,
    placed_at timestamptz not null,
    status text not null,
    amount numeric(10, 2) not null
);
insert into orders values
    (1, 1, '2026-01-01 10:00Z', 'new', 10.00),
    (2, 1, '2026-01-01 11:00Z', 'paid', 20.00),
    (3, 2, '2026-01-01 12:00Z', 'sent', 30.00);
