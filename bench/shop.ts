/** A generated database with what real ones have: several tables, foreign keys, indexes, a composite key. */
import { DatabaseSync } from 'node:sqlite';

export const SHOP_TABLES = ['customer', 'product', 'orders', 'line', 'event'] as const;

export const SHOP_CREATE_TABLES = [
  `create table customer (id integer primary key not null, name text not null, email text not null unique,
    city text, joined text not null)`,
  `create table product (id integer primary key not null, name text not null, price real not null, stock integer not null)`,
  `create table orders (id integer primary key not null, customer_id integer not null references customer (id),
    placed text not null, total real not null)`,
  `create table line (order_id integer not null references orders (id), position integer not null,
    product_id integer not null references product (id), quantity integer not null, price real not null,
    primary key (order_id, position)) without rowid`,
  `create table event (id integer primary key not null, customer_id integer references customer (id),
    kind text not null, body blob)`,
];

export const SHOP_CREATE_INDEXES = [
  `create index orders_by_customer on orders (customer_id)`,
  `create index orders_by_day on orders (placed)`,
  `create index line_by_product on line (product_id)`,
  `create index event_by_kind on event (kind, customer_id)`,
];

/** Rows in all: of ten, six are order lines, two orders, and one an event. */
export function generateShop(path: string, rows: number): number {
  using database = new DatabaseSync(path);
  database.exec('pragma journal_mode = off; pragma synchronous = off; begin');
  for (const statement of [...SHOP_CREATE_TABLES, ...SHOP_CREATE_INDEXES]) database.exec(statement);
  const customers = Math.floor(rows * 0.08);
  const products = Math.floor(rows * 0.02);
  const orders = Math.floor(rows * 0.2);
  const events = Math.floor(rows * 0.1);
  const series = `with recursive n (i) as (select 1 union all select i + 1 from n where i < ?1)`;
  const fill = (select: string, count: number): number =>
    Number(database.prepare(select.replace('SERIES', series)).run(count).changes);
  // Multiplying by a large odd number and taking the rest scatters references as if they were random.
  let made = fill(
    `SERIES insert into customer select i, 'Customer ' || i, 'mail' || (i * 7919) || '@example.org',
      'City ' || (i * 31 % 997), date('2020-01-01', (i % 2000) || ' days') from n`,
    customers,
  );
  made += fill(
    `SERIES insert into product select i, 'Product ' || i, (i * 37 % 10000) / 100.0, i % 500 from n`,
    products,
  );
  made += fill(
    `SERIES insert into orders select i, 1 + (i * 2654435761) % ${customers}, datetime('2021-01-01', (i * 5) || ' minutes'),
      (i * 97 % 100000) / 100.0 from n`,
    orders,
  );
  for (let position = 1; position <= 3; position += 1)
    made += fill(
      `SERIES insert into line select i, ${position}, 1 + (i * 40503 + ${position} * 7919) % ${products}, 1 + i % 9,
        (i * 13 % 5000) / 100.0 from n`,
      orders,
    );
  made += fill(
    `SERIES insert into event select i, 1 + (i * 48271) % ${customers}, 'kind ' || (i % 17),
      zeroblob(40 + i % 120) from n`,
    events,
  );
  database.exec('commit');
  return made;
}
