/**
 * The tour's own sample: the database of a public library. The same seed gives the same rows, so that a figure in a
 * report can be looked up. It has what real databases have: foreign keys, a composite key, a table without rowid, an
 * index, triggers, and full-text search that a trigger keeps.
 */
import { DatabaseSync } from 'node:sqlite';

const SEED = 20_121_202;
const AUTHORS = 400;
const BOOKS = 2_000;
const COPIES = 4_000;
const MEMBERS = 1_500;
const LOANS = 6_000;
const GENRES = [
  'adventure',
  'crime',
  'drama',
  'epic',
  'essay',
  'fantasy',
  'history',
  'humour',
  'poetry',
  'science',
  'travel',
];

export const LIBRARY = { copies: COPIES, members: MEMBERS, firstNewLoan: 1_000_000 } as const;

const SCHEMA = `
create table authors (id integer primary key not null, name text not null, born integer);
create table genres (name text primary key not null, shelf text not null) without rowid;
create table books (
  id integer primary key not null,
  author_id integer not null references authors (id),
  title text not null,
  year integer not null,
  price real not null check (price > 0)
);
create index books_by_author on books (author_id);
create table book_genres (
  book_id integer not null references books (id) on delete cascade,
  genre text not null references genres (name),
  primary key (book_id, genre)
);
create table copies (
  id integer primary key not null,
  book_id integer not null references books (id),
  times_lent integer not null default 0
);
create table members (id integer primary key not null, name text not null, email text not null unique, joined text not null, card blob);
create table loans (
  id integer primary key not null,
  copy_id integer not null references copies (id),
  member_id integer not null references members (id),
  lent_on text not null,
  returned_on text
);
create index loans_by_member on loans (member_id, lent_on);
create virtual table book_search using fts5 (title, author);
create trigger books_are_searchable after insert on books begin
  insert into book_search (rowid, title, author)
  values (new.id, new.title, (select name from authors where id = new.author_id));
end;
create trigger loans_are_counted after insert on loans begin
  update copies set times_lent = times_lent + 1 where id = new.copy_id;
end;
create view lent as
  select books.title, members.name as member, loans.lent_on
  from loans join copies on copies.id = loans.copy_id join books on books.id = copies.book_id
  join members on members.id = loans.member_id where loans.returned_on is null;
`;

const FIRST = [
  'Ada',
  'Bela',
  'Chinua',
  'Daphne',
  'Elif',
  'Fernando',
  'Grace',
  'Haruki',
  'Ingeborg',
  'José',
  'Karel',
  'Leïla',
  'Mikhail',
  'Ngũgĩ',
  'Olga',
  'Pramoedya',
  'Roberto',
  'Selma',
  'Tove',
  'Wisława',
];
const LAST = [
  'Adichie',
  'Borges',
  'Čapek',
  'Dickinson',
  'Eco',
  'Ferrante',
  'García',
  'Homer',
  'Ibsen',
  'Jansson',
  'Kafka',
  'Lem',
  'Murakami',
  'Nabokov',
  'Ørsted',
  'Pessoa',
  'Rushdie',
  'Szymborska',
  'Tolstoy',
  'Woolf',
];
const SUBJECT = [
  'The Sea',
  'A House',
  'The Return',
  'Winter',
  'The Lighthouse',
  'A Stranger',
  'The Island',
  'Memory',
  'The Harbour',
  'A Map',
  'The Garden',
  'Salt',
];
const PLACE = [
  'of Ithaca',
  'in the North',
  'without Walls',
  'at Dusk',
  'of the Last King',
  'under Snow',
  'and Other Stories',
  'after the Storm',
  'for Beginners',
  'of Glass',
];

/** mulberry32: small, fast and good enough for made-up books. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Days from 2000 as `2019-05-31`. */
function day(number: number): string {
  return new Date(Date.UTC(2000, 0, 1) + number * 86_400_000).toISOString().slice(0, 10);
}

type Pick = (below: number) => number;

function fillBooks(db: DatabaseSync, pick: Pick): void {
  const one = (list: readonly string[]): string => list[pick(list.length)]!;
  const author = db.prepare('insert into authors values (?, ?, ?)');
  for (let id = 1; id <= AUTHORS; id++)
    author.run(id, `${one(FIRST)} ${one(LAST)}`, pick(10) === 0 ? null : 1800 + pick(200));
  const genre = db.prepare('insert into genres values (?, ?)');
  for (const [index, name] of GENRES.entries()) genre.run(name, `Shelf ${index + 1}`);
  const book = db.prepare('insert into books values (?, ?, ?, ?, ?)');
  const bookGenre = db.prepare('insert or ignore into book_genres values (?, ?)');
  for (let id = 1; id <= BOOKS; id++) {
    book.run(id, 1 + pick(AUTHORS), `${one(SUBJECT)} ${one(PLACE)}`, 1900 + pick(125), (499 + pick(4_000)) / 100);
    for (let n = 0; n <= pick(2); n++) bookGenre.run(id, one(GENRES));
  }
  const copy = db.prepare('insert into copies (id, book_id) values (?, ?)');
  for (let id = 1; id <= COPIES; id++) copy.run(id, 1 + pick(BOOKS));
}

function fillMembers(db: DatabaseSync, pick: Pick): void {
  const one = (list: readonly string[]): string => list[pick(list.length)]!;
  const member = db.prepare('insert into members values (?, ?, ?, ?, ?)');
  for (let id = 1; id <= MEMBERS; id++) {
    const card = pick(8) === 0 ? null : Uint8Array.from({ length: 16 }, () => pick(256));
    member.run(id, `${one(FIRST)} ${one(LAST)}`, `member${id}@library.example`, day(pick(9_000)), card);
  }
  const loan = db.prepare('insert into loans values (?, ?, ?, ?, ?)');
  for (let id = 1; id <= LOANS; id++) {
    const lent = pick(9_000);
    loan.run(id, 1 + pick(COPIES), 1 + pick(MEMBERS), day(lent), pick(12) === 0 ? null : day(lent + 1 + pick(28)));
  }
}

/** Writes the sample to a new file. */
export function createSample(file: string): void {
  const db = new DatabaseSync(file);
  try {
    db.exec('pragma journal_mode = off; pragma synchronous = off');
    db.exec(SCHEMA);
    db.exec('begin');
    const pick = randomFrom(SEED);
    fillBooks(db, pick);
    fillMembers(db, pick);
    db.exec('commit');
  } finally {
    db.close();
  }
}
