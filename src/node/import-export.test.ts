/** Import and export of real files, end to end: what is taken, what is refused and why, and that it comes back the same. */
import { deepStrictEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { NostosError } from '../base/errors.ts';
import { dumpDatabase } from '../testing/dump-database.fixture.ts';
import { mountSmall, mountRefusal } from '../testing/small-disk.fixture.ts';
import { openNode } from './open-node.ts';
import type { ImportOptions, Node, Tenant } from './types.ts';

let dir: string;
let node: Node;
let files = 0;

before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'nostos-import-'));
  node = await openNode({ dir: join(dir, 'node'), scrubIntervalMs: false });
});

after(async () => {
  await node?.close();
  rmSync(dir, { recursive: true, force: true });
});

/** A new path for a file with this SQL in it. */
function source(script: string, fill?: (db: DatabaseSync) => void): string {
  const path = join(dir, `source-${++files}.sqlite`);
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: false, enableDoubleQuotedStringLiterals: true });
  db.exec(script);
  fill?.(db);
  db.close();
  return path;
}

async function imported(file: string, options?: ImportOptions): Promise<Tenant> {
  const tenant = node.tenant(`t${++files}`);
  await tenant.importFile(file, options);
  return tenant;
}

async function exported(tenant: Tenant): Promise<string> {
  const path = join(dir, `export-${++files}.sqlite`);
  await tenant.exportFile(path);
  return path;
}

/** Asserts that the import is refused for this reason, and leaves nothing behind. */
async function refused(file: string, why: RegExp, options?: ImportOptions): Promise<NostosError> {
  const name = `refused-${++files}`;
  let found: unknown;
  await rejects(node.tenant(name).importFile(file, options), (error) => {
    found = error;
    return true;
  });
  ok(found instanceof NostosError, String(found));
  equal(found.code, 'IMPORT_REFUSED', found.message);
  match(found.message, why);
  equal(await node.tenants.get(name), undefined, 'no tenant is left behind');
  return found;
}

async function verified(tenant: Tenant): Promise<void> {
  const report = await node.verify({ tenant: tenant.name });
  deepStrictEqual(report.problems, []);
}

/** Schemas and rows that must come back from an export exactly as they were. */
const ROUND_TRIPS: readonly (readonly [name: string, script: string, fill?: (db: DatabaseSync) => void])[] = [
  [
    'a plain table',
    `create table t (id integer primary key, a text, b real); insert into t values (1, 'x', 1.5), (7, null, 2)`,
  ],
  ['no tables at all', 'pragma user_version = 3; create table t (a); drop table t'],
  [
    'WITHOUT ROWID, with a key in another order and one that descends',
    `create table t (a text not null, b integer not null, c, primary key (b, a)) without rowid;
     create table u (a integer not null, b integer not null, primary key (a, b desc)) without rowid;
     insert into t values ('x', 2, 1), ('y', 1, 2), ('x', 1, 3); insert into u values (1, 1), (1, 2), (2, 1)`,
  ],
  [
    'keys that are not the rowid',
    `create table t (code text primary key not null, v); insert into t values ('b', 1), ('a', 2), ('', 3)`,
  ],
  [
    'generated columns, stored and virtual',
    `create table t (id integer primary key, a integer, b integer generated always as (a * 2) stored,
       c text generated always as ('v' || a) virtual);
     create index t_c on t (c); insert into t (a) values (1), (2)`,
  ],
  [
    'views and triggers that must not fire during the import',
    `create table t (id integer primary key, a); create table log (id integer primary key, what text);
     create view v as select id, a from t;
     create trigger t_ins after insert on t begin insert into log (what) values ('ins ' || new.id); end;
     create trigger t_when before update on t when new.a <> old.a /* why */ begin insert into log (what) values ('upd'); end;
     create trigger v_ins instead of insert on v begin insert into t (a) values (new.a); end;
     insert into t (a) values (1); insert into v values (null, 2)`,
  ],
  [
    'triggers whose order matters',
    `create table t (id integer primary key); create table log (id integer primary key, what text);
     create trigger b after insert on t begin insert into log (what) values ('b'); end;
     create trigger a after insert on t begin insert into log (what) values ('a'); end`,
  ],
  [
    'partial and expression indexes, and one that is unique',
    `create table t (id integer primary key, a text, b integer);
     create unique index t_a on t (lower(a)) where a is not null; create index t_b on t (b desc, a collate nocase) where b > 5;
     insert into t (a, b) values ('X', 1), (null, 9), (null, 9)`,
  ],
  [
    'FTS5 with external content, contentless and plain',
    `create table doc (id integer primary key, body text);
     create virtual table f using fts5 (body, content = doc, content_rowid = id);
     create trigger doc_ins after insert on doc begin insert into f (rowid, body) values (new.id, new.body); end;
     create virtual table g using fts5 (body, content = ''); create virtual table h using fts5 (a, b, prefix = '2 3');
     insert into doc (body) values ('red fox'), ('blue whale'); insert into g (rowid, body) values (5, 'green frog');
     insert into h values ('one', 'two')`,
  ],
  ['FTS4', `create virtual table f using fts4 (a, b); insert into f values ('red fox', 'x'), ('blue', 'y')`],
  [
    'R-tree',
    `create virtual table r using rtree (id, x0, x1, +label text); insert into r values (1, 0, 1, 'a'), (2, 5, 6, 'b')`,
  ],
  [
    'AUTOINCREMENT counters beyond the highest row, and those of tables that are gone',
    `create table t (id integer primary key autoincrement, a); create table gone (id integer primary key autoincrement);
     insert into gone values (5); drop table gone; insert into t (a) values (1), (2); delete from t where id = 2;
     update sqlite_sequence set seq = 9007199254740993 where name = 't'; insert into sqlite_sequence values ('ghost', 4)`,
  ],
  [
    'settings in the header',
    'pragma user_version = -7; pragma application_id = 1196444487; create table t (a integer primary key)',
  ],
  [
    'quoted, Unicode and keyword names, and columns called rowid',
    `create table "se""lect" (id integer primary key, "group" text, "größe x" real, [a]]b] text);
     create table "表" ("ключ" text primary key not null, "it's" text);
     create table r (rowid text, id integer primary key); create table s (rowid integer primary key, a);
     create table all3 (rowid text not null, _rowid_ text, oid text, primary key (rowid, _rowid_, oid)) without rowid;
     create table named (rowid text, _rowid_ text, oid integer primary key);
     insert into "se""lect" values (1, 'g', 1.5, 'x'); insert into "表" values ('k', 'v'); insert into r values ('x', 5);
     insert into s values (9, 1); insert into named values ('a', 'b', 3), ('a', 'b', 4)`.replace('[a]]b]', '"a]b"'),
  ],
  [
    'values of every type, at their limits',
    `create table t (id integer primary key, v); create table any_key (k text not null primary key, v blob) without rowid;
     insert into t (id, v) values (-9223372036854775808, 1), (9223372036854775807, 2);
     insert into t (v) values (-9223372036854775808);
     insert into t (id, v) values (2, 9007199254740993), (3, 9e999), (4, -9e999), (5, -0.0), (6, 1.0), (7, x''), (8, ''),
       (9, 'a' || char(0) || 'b'), (10, cast(x'ff00fe' as text)), (11, zeroblob(100000)), (12, null), (13, '12');
     insert into any_key values (cast(x'fffe' as text), 1), (cast(x'ff' as text), 2), ('a' || char(0), 3), ('a', 4), ('', 5)`.replace(
      'insert into t (v) values (-9223372036854775808);',
      '',
    ),
  ],
  [
    'foreign keys in a circle, before their parents',
    `create table a (id integer primary key, b integer references b (id) deferrable initially deferred);
     create table b (id integer primary key, a integer not null references a (id) on delete cascade);
     insert into a values (1, 1); insert into b values (1, 1)`,
  ],
  [
    'STRICT tables and defaults of columns that came later',
    `create table t (id integer primary key, a any, b blob) strict; insert into t values (1, 1, x'00'), (2, 'x', null);
     alter table t add column c text not null default 'later'; insert into t values (3, 2.5, null, 'now')`,
  ],
  ['no rows', 'create table t (id integer primary key); create table u (a text primary key not null) without rowid'],
];

describe('what is imported comes back from an export as it was', () => {
  for (const [name, script, fill] of ROUND_TRIPS)
    it(name, async () => {
      const file = source(script, fill);
      const tenant = await imported(file);
      await verified(tenant);
      const back = await exported(tenant);
      deepStrictEqual(dumpDatabase(back), dumpDatabase(file));
      ok(!readFileSync(back).includes('nostos'), 'nothing of Nostos is in the bytes');
      const again = await imported(back);
      deepStrictEqual(dumpDatabase(await exported(again)), dumpDatabase(file));
    });
});

describe('after the import the schema works as it did', () => {
  it('triggers fire once, full-text search and counters go on', async () => {
    const file = source(
      `create table doc (id integer primary key autoincrement, body text); create table log (id integer primary key, what text);
       create virtual table f using fts5 (body, content = doc, content_rowid = id);
       create trigger doc_ins after insert on doc begin
         insert into f (rowid, body) values (new.id, new.body); insert into log (what) values (new.body); end;
       insert into doc (body) values ('red fox'), ('blue whale'); delete from doc where id = 99;
       update sqlite_sequence set seq = 40`,
    );
    const tenant = await imported(file);
    deepStrictEqual(await tenant.query('select count(*) as n from log'), [{ n: 2 }]);
    const { lastInsertRowid } = await tenant.write((tx) => tx.run(`insert into doc (body) values ('red panda')`));
    equal(lastInsertRowid, 41);
    deepStrictEqual(await tenant.query(`select rowid from f where f match 'red' order by rowid`), [
      { rowid: 1 },
      { rowid: 41 },
    ]);
    deepStrictEqual(await tenant.query('select count(*) as n from log'), [{ n: 3 }]);
    await verified(tenant);
  });

  it('is the same when the tenant is built from the log alone', async () => {
    const file = source(
      `create table t (id integer primary key autoincrement, a text); create index t_a on t (a);
       create virtual table f using fts5 (a); create trigger t_ins after insert on t begin insert into f values (new.a); end;
       insert into t (a) values ('one'), ('two'); update sqlite_sequence set seq = 77; pragma user_version = 5;
       pragma application_id = 99`,
    );
    const own = join(dir, `replay-${++files}`);
    await using first = await openNode({ dir: own, scrubIntervalMs: false });
    await first.tenant('x').importFile(file);
    await first.close();
    rmSync(join(own, 'tenants', 'tenant_1', 'data.sqlite'));
    // The stored bound says that the file has everything; it is the file that was lost.
    rmSync(join(own, 'log', 'durable'), { force: true });
    rmSync(join(own, 'catalog.sqlite'), { force: true });
    await using second = await openNode({ dir: own, scrubIntervalMs: false });
    deepStrictEqual((await second.verify()).problems, []);
    const back = join(dir, `replayed-${++files}.sqlite`);
    await second.tenant('x').exportFile(back);
    deepStrictEqual(dumpDatabase(back), dumpDatabase(file));
  });
});

describe('files that are not what an import can read', () => {
  const table = 'create table t (id integer primary key, a text); create index t_a on t (a)';
  const many = (db: DatabaseSync): void =>
    db.exec(
      `with recursive n (i) as (values (1) union all select i + 1 from n where i < 5000)
       insert into t select i, 'row ' || i from n`,
    );

  it('missing, a directory, empty, not SQLite', async () => {
    await refused(join(dir, 'absent.sqlite'), /no such file/);
    await refused(dir, /not a file/);
    const zero = join(dir, 'zero.sqlite');
    writeFileSync(zero, '');
    await refused(zero, /is empty/);
    const text = join(dir, 'text.sqlite');
    writeFileSync(text, 'hello '.repeat(1000));
    await refused(text, /not an SQLite database/);
    await rejects(node.tenant('x').importFile(undefined as never), { code: 'INVALID_ARGUMENT' });
    await rejects(node.tenant('x').importFile('a\0b'), { code: 'INVALID_ARGUMENT' });
  });

  it('encrypted: its first bytes are noise', async () => {
    const file = source(table, many);
    const noise = Uint8Array.from({ length: 4096 }, (_, index) => (index * 7919 + 13) & 0xff);
    patch(file, 0, noise);
    await refused(file, /not an SQLite database, or it is encrypted/);
  });

  it('truncated, and with a damaged page', async () => {
    const short = source(table, many);
    const descriptor = openSync(short, 'r+');
    ftruncateSync(descriptor, 4096 * 10);
    closeSync(descriptor);
    await refused(short, /damaged/);
    const flipped = source(table, many);
    patch(flipped, 4096 * 3, new Uint8Array(512).fill(0xa5));
    await refused(flipped, /damaged/);
  });

  it('with rows that break a constraint of their table', async () => {
    const file = source(`${table}; insert into t (a) values ('same'), ('same')`);
    const db = new DatabaseSync(file, { defensive: false });
    db.exec(
      `pragma writable_schema = on; update sqlite_schema set sql = 'CREATE UNIQUE INDEX t_a ON t (a)' where name = 't_a'`,
    );
    db.close();
    await refused(file, /UNIQUE constraint failed|damaged/);
  });

  it('text that is not UTF-8', async () => {
    const file = source(
      `pragma encoding = 'UTF-16le'; create table t (id integer primary key); insert into t values (1)`,
    );
    await refused(file, /UTF-16le/);
  });

  it('a journal that must be rolled back', async () => {
    const file = source(table, many);
    // A writer that dies with its changes spilled into the file leaves a hot journal.
    const script = `const { DatabaseSync } = require('node:sqlite'); const db = new DatabaseSync(process.argv[1]);
      db.exec('pragma cache_size = 2; begin'); db.exec("update t set a = a || 'x'"); process.kill(process.pid, 'SIGKILL')`;
    const child = spawn(process.execPath, ['-e', script, file], { stdio: 'ignore' });
    const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
    equal(signal, 'SIGKILL');
    ok(existsSync(`${file}-journal`), 'the journal is hot');
    await refused(file, /journal/);
  });

  it('locked by another program', async () => {
    const file = source(table, many);
    const holder = new DatabaseSync(file);
    holder.exec('begin exclusive');
    try {
      await refused(file, /another program/);
    } finally {
      holder.close();
    }
  });
});

describe('a source in WAL mode', () => {
  const script = `pragma journal_mode = wal; pragma wal_autocheckpoint = 0; create table t (id integer primary key, a text);
    insert into t (a) values ('one')`;

  it('is read with what is only in its WAL, and left as it was', async () => {
    const path = join(dir, `wal-${++files}.sqlite`);
    const holder = new DatabaseSync(path);
    holder.exec(script);
    holder.exec(`insert into t (a) values ('only in the WAL')`);
    const bytes = [path, `${path}-wal`].map((file) => readFileSync(file));
    const tenant = await imported(path);
    deepStrictEqual(await tenant.query('select a from t order by id'), [{ a: 'one' }, { a: 'only in the WAL' }]);
    deepStrictEqual(
      [path, `${path}-wal`].map((file) => readFileSync(file)),
      bytes,
    );
    holder.close();
  });

  it('is read from a read-only directory when its WAL is empty, and refused with the remedy when not', async (t) => {
    const why = mountRefusal();
    if (why !== undefined) return t.skip(why);
    using disk = mountSmall(8 * 1024 * 1024);
    const closed = join(disk.dir, 'closed.sqlite');
    const db = new DatabaseSync(closed);
    db.exec(script);
    db.close();
    ok(!existsSync(`${closed}-wal`));
    const left = join(disk.dir, 'left.sqlite');
    const other = new DatabaseSync(left);
    other.exec(script);
    for (const suffix of ['', '-wal'])
      writeFileSync(join(disk.dir, `copied.sqlite${suffix}`), readFileSync(`${left}${suffix}`));
    other.close();
    disk.remount('ro');
    const tenant = await imported(closed);
    deepStrictEqual(await tenant.query('select a from t'), [{ a: 'one' }]);
    await refused(join(disk.dir, 'copied.sqlite'), /write-ahead log/);
    disk.remount('rw');
    deepStrictEqual(await (await imported(join(disk.dir, 'copied.sqlite'))).query('select a from t'), [{ a: 'one' }]);
  });
});

describe('schemas that cannot be taken are refused by name, with the remedy', () => {
  const CASES: readonly (readonly [name: string, script: string, why: RegExp])[] = [
    ['no primary key', 'create table t (a text)', /t: .*PRIMARY KEY.*\n.*addKey/s],
    ['a key that may be NULL', 'create table t (a text primary key)', /t\.a: .*NULL.*NOT NULL/s],
    ['a key that ignores case', 'create table t (a text collate nocase primary key not null)', /t\.a: .*nocase/s],
    ['a REAL key', 'create table t (a real primary key not null)', /t\.a: .*REAL/s],
    ['a key without a type', 'create table t (a primary key not null) without rowid', /t\.a: .*\(none\)/s],
    ['ON CONFLICT REPLACE', 'create table t (a integer primary key, b unique on conflict replace)', /t: ON CONFLICT/],
    ['a name of Nostos', 'create table nostos_meta (id integer primary key)', /nostos_meta: .*rename/s],
    [
      'content without a key',
      'create table d (body text primary key not null); create virtual table f using fts5 (body, content = d)',
      /f: .*rowids/s,
    ],
    [
      'double quotes for text in an index',
      'create table t (id integer primary key, a); create index i on t (a) where a <> "x"',
      /i: .*single-quotes/s,
    ],
    [
      'double quotes for text in a view',
      'create table t (id integer primary key); create view v as select "x" as y from t',
      /v: .*no such column.*single quotes/is,
    ],
    [
      'double quotes for text in a trigger',
      'create table t (id integer primary key, a); create trigger g after insert on t begin update t set a = "x"; end',
      /g: .*single quotes/s,
    ],
    [
      'a foreign key that can never hold',
      'create table p (id integer primary key, a); create table c (id integer primary key, p references p (a)); insert into c values (1, 1)',
      /foreign key mismatch/,
    ],
  ];
  for (const [name, script, why] of CASES) {
    it(name, async () => {
      const error = await refused(source(script), why);
      ok(error.details['file'] !== undefined);
    });
  }

  it('a view that does not work', async () => {
    await refused(
      source('create table t (id integer primary key); create view v as select * from absent'),
      /v: this view does not work: no such table.*drop the view/s,
    );
  });

  it('rows whose foreign keys point nowhere, unless they are wanted', async () => {
    const file = source(
      `create table p (id integer primary key); create table c (id integer primary key, p integer references p (id));
       insert into c values (1, 5), (2, null), (3, 6)`,
    );
    const error = await refused(file, /2 rows of c refer to missing rows of p.*keepViolations/s);
    deepStrictEqual(error.details['violations'], [{ child: 'c', parent: 'p', rows: 2 }]);
    const tenant = await imported(file, { keepViolations: true });
    await verified(tenant);
    await rejects(
      tenant.write((tx) => tx.run('insert into c values (9, 9)')),
      { code: 'CONSTRAINT_FAILED' },
    );
    await tenant.write((tx) => tx.run('insert into p values (5)'));
  });
});

describe('addKey gives a key to tables that have none', () => {
  it('without changing rows, rowids or uniqueness', async () => {
    const file = source(
      `create table bare (a text, b); create table nullable (code text primary key, v) ;
       create table pair (a integer, b text, v, constraint pk primary key (a, b desc));
       create table d (body text); create virtual table f using fts5 (body, content = d);
       insert into bare values ('x', 1), ('x', 1); delete from bare where rowid = 1; insert into bare values (null, 2.5);
       insert into nullable values ('k', 1), (null, 2), (null, 3); insert into pair values (1, 'a', 0), (1, null, 0);
       insert into d (rowid, body) values (3, 'red fox'), (10, 'red whale'); insert into f (f) values ('rebuild')`,
    );
    await refused(file, /addKey/);
    const tenant = node.tenant(`keys-${++files}`);
    const report = await tenant.importFile(file, { addKey: true });
    deepStrictEqual(
      report.tables.map(({ name, rows, addedKey }) => [name, rows, addedKey]),
      [
        ['bare', 2, 'row_id'],
        ['d', 2, 'row_id'],
        ['nullable', 3, 'row_id'],
        ['pair', 2, 'row_id'],
      ],
    );
    deepStrictEqual(await tenant.query('select * from bare order by row_id'), [
      { row_id: 2, a: 'x', b: 1 },
      { row_id: 3, a: null, b: 2.5 },
    ]);
    deepStrictEqual(await tenant.query(`select rowid, body from f where f match 'red' order by rowid`), [
      { rowid: 3, body: 'red fox' },
      { rowid: 10, body: 'red whale' },
    ]);
    await rejects(
      tenant.write((tx) => tx.run(`insert into nullable (code) values ('k')`)),
      { code: 'CONSTRAINT_FAILED' },
    );
    await rejects(
      tenant.write((tx) => tx.run(`insert into pair (a, b) values (1, 'a')`)),
      { code: 'CONSTRAINT_FAILED' },
    );
    await verified(tenant);
  });

  const REFUSED: readonly (readonly [name: string, script: string, why: RegExp])[] = [
    [
      'a foreign key that means the primary key without naming it',
      'create table p (code text primary key); create table c (id integer primary key, p text references p)',
      /c\.p: .*without naming it/s,
    ],
    [
      'a WITHOUT ROWID table, which must have its own key',
      'create table t (a real not null primary key) without rowid',
      /t\.a: .*REAL/s,
    ],
    ['columns that take all names of the rowid', 'create table t (rowid, _rowid_, oid)', /t: .*names of the rowid/s],
    ['a view of all columns', 'create table t (a); create view v as select * from t', /v: .*all columns/s],
    [
      'a trigger that copies all columns',
      'create table t (a); create table u (a); create trigger g after delete on t begin insert into u select * from t; end',
      /g: .*all columns/s,
    ],
    [
      'a trigger that inserts without naming columns',
      'create table t (a); create table u (id integer primary key); create trigger g after insert on u begin insert into t values (1); end',
      /g: .*2 columns but 1 values/s,
    ],
  ];
  for (const [name, script, why] of REFUSED)
    it(`and refuses ${name}`, async () => {
      await refused(source(script), why, { addKey: true });
    });

  it('with a name that is free, and keys with dots in their names', async () => {
    const file = source(`create table t (row_id text, "a.b" text primary key); insert into t values ('x', 'y')`);
    const tenant = await imported(file, { addKey: true });
    deepStrictEqual(await tenant.query('select * from t'), [{ row_id_1: 1, row_id: 'x', 'a.b': 'y' }]);
  });
});

describe('an import that does not come to its end', () => {
  const rows =
    (count: number, bytes: number) =>
    (db: DatabaseSync): void => {
      db.exec('create table t (id integer primary key, a blob); create index t_a on t (a)');
      db.prepare(
        `with recursive n (i) as (values (1) union all select i + 1 from n where i < ?) insert into t select i, randomblob(?) from n`,
      ).run(count, bytes);
    };

  it('a dry run writes nothing and reports what it would do', async () => {
    const file = source('', rows(10, 10));
    const before = (await node.status()).log.lastLsn;
    const report = await node.tenant('dry').importFile(file, { dryRun: true });
    deepStrictEqual([report.rows, report.dryRun], [10, true]);
    equal((await node.status()).log.lastLsn, before);
    equal(await node.tenants.get('dry'), undefined);
  });

  it('into a tenant that has tables is refused, and leaves it alone', async () => {
    const file = source('', rows(10, 10));
    const tenant = await node.tenants.create('full');
    await tenant.migrate(['create table mine (id integer primary key)']);
    await rejects(tenant.importFile(file), { code: 'TENANT_EXISTS' });
    await rejects(tenant.importFile(file, { dryRun: true }), { code: 'TENANT_EXISTS' });
    deepStrictEqual(await tenant.query('select count(*) as n from mine'), [{ n: 0 }]);
    await tenant.write((tx) => tx.run('insert into mine values (1)'), { id: 'nostos:import' });
    await rejects(tenant.importFile(file), { code: 'TENANT_EXISTS' });
    deepStrictEqual(await tenant.query('select count(*) as n from mine'), [{ n: 1 }]);
  });

  it('two at a time: one is refused, the other is whole', async () => {
    const file = source('', rows(2_000, 50));
    const results = await Promise.allSettled([
      node.tenant('two').importFile(file),
      node.tenant('two').importFile(file),
    ]);
    deepStrictEqual(results.map(({ status }) => status).toSorted(), ['fulfilled', 'rejected']);
    deepStrictEqual(await node.tenant('two').query('select count(*) as n from t'), [{ n: 2_000 }]);
  });

  it('is not served meanwhile, and leaves nothing when it is cancelled', async () => {
    const file = source('', rows(20_000, 200));
    const tenant = node.tenant('cancelled');
    const stop = new AbortController();
    const reason = new Error('enough');
    const seen: unknown[] = [];
    let reading: Promise<unknown> | undefined;
    const importing = tenant.importFile(file, {
      signal: stop.signal,
      onProgress: ({ done }) => {
        if (done === 0) return;
        reading ??= tenant.query('select count(*) from t').catch((error: unknown) => seen.push(error));
        stop.abort(reason);
      },
    });
    await rejects(importing, (error) => error === reason);
    await reading;
    ok(seen[0] instanceof NostosError, 'reading half an import is refused');
    equal(await node.tenants.get('cancelled'), undefined);
    await rejects(tenant.importFile(file, { signal: AbortSignal.abort(reason) }), (error) => error === reason);
    equal(await node.tenants.get('cancelled'), undefined);
    await tenant.importFile(file);
    await verified(tenant);
  });

  it('an empty tenant that was there before is there afterwards', async () => {
    const file = source('', rows(20_000, 200));
    const tenant = await node.tenants.create('kept');
    const stop = new AbortController();
    await rejects(
      tenant.importFile(file, { signal: stop.signal, onProgress: ({ done }) => done > 0 && stop.abort() }),
      { name: 'AbortError' },
    );
    equal((await node.tenants.get('kept'))?.schemaVersion, 0);
    await tenant.importFile(file);
  });

  it('a source that changes meanwhile is refused', async () => {
    for (const mode of ['delete', 'wal']) {
      const file = source(`pragma journal_mode = ${mode}`, rows(20_000, 200));
      const writer = new DatabaseSync(file, { timeout: 2_000 });
      const tenant = node.tenant(`changing-${mode}`);
      let changed = false;
      await rejects(
        tenant.importFile(file, {
          onProgress: ({ done }) => {
            if (done === 0 || changed) return;
            writer.exec(`update t set a = 'x' where id = 1`);
            changed = true;
          },
        }),
        /was changed during the import/,
      );
      ok(changed);
      writer.close();
      equal(await node.tenants.get(`changing-${mode}`), undefined);
    }
  });

  it('kill -9 in the midst leaves a tenant that is not served, and the next import replaces it', async () => {
    const file = source('', rows(40_000, 300));
    const own = join(dir, `killed-${++files}`);
    const script = fileURLToPath(new URL('import-victim.fixture.ts', import.meta.url));
    const child = spawn(process.execPath, [script, own, file], { stdio: ['ignore', 'pipe', 'inherit'] });
    child.stdout.once('data', () => child.kill('SIGKILL'));
    const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
    equal(signal, 'SIGKILL', 'it was killed in the midst of its import');
    await using again = await openNode({ dir: own, scrubIntervalMs: false });
    const tenant = again.tenant('x');
    await rejects(tenant.query('select count(*) from t'), { code: 'IMPORT_UNFINISHED' });
    await rejects(
      tenant.write((tx) => tx.run('delete from t')),
      { code: 'IMPORT_UNFINISHED' },
    );
    await rejects(tenant.migrate(['create table u (id integer primary key)']), { code: 'IMPORT_UNFINISHED' });
    await rejects(tenant.exportFile(join(dir, 'half.sqlite')), { code: 'IMPORT_UNFINISHED' });
    await tenant.importFile(file);
    deepStrictEqual((await again.verify()).problems, []);
    const back = join(dir, `killed-${files}.sqlite`);
    await tenant.exportFile(back);
    deepStrictEqual(dumpDatabase(back), dumpDatabase(file));
  });
});

describe('large rows', () => {
  it('are copied up to the limit of a record, and refused by the name of their table beyond it', async () => {
    const own = join(dir, `large-${++files}`);
    const limits = { recordBytesMax: 1024 * 1024, segmentBytesMax: 4 * 1024 * 1024 };
    await using small = await openNode({ dir: own, scrubIntervalMs: false, limits });
    const file = source(
      'create table big (id integer primary key, a blob); create table other (id integer primary key, a)',
      (db) => {
        db.exec(`with recursive n (i) as (values (1) union all select i + 1 from n where i < 3000)
        insert into other select i, 'small' from n`);
        for (const bytes of [10, 400_000, 900_000, 10, 950_000, 300_000, 10])
          db.prepare('insert into big (a) values (randomblob(?))').run(bytes);
      },
    );
    await small.tenant('x').importFile(file);
    const back = join(dir, `large-${files}.sqlite`);
    await small.tenant('x').exportFile(back);
    deepStrictEqual(dumpDatabase(back), dumpDatabase(file));
    const larger = source('create table big (id integer primary key, a blob)', (db) =>
      db.exec('insert into big (a) values (zeroblob(10)), (zeroblob(1100000))'),
    );
    await rejects(small.tenant('y').importFile(larger), (error) => {
      ok(error instanceof NostosError);
      equal(error.code, 'IMPORT_REFUSED');
      match(error.message, /row of big is too large/);
      return true;
    });
    equal(await small.tenants.get('y'), undefined);
    deepStrictEqual((await small.verify()).problems, []);
  });

  it('of integers that look small take more chunks, not more memory', async () => {
    const file = source('create table t (id integer primary key, a integer)', (db) =>
      db.exec('insert into t values (1, 1), (2, zeroblob(3000000)), (3, zeroblob(3000000))'),
    );
    const tenant = await imported(file);
    deepStrictEqual(dumpDatabase(await exported(tenant)), dumpDatabase(file));
  });
});

describe('export', () => {
  it('never replaces a file unless told to, and never beside the WAL of another database', async () => {
    const tenant = await imported(source('create table t (id integer primary key); insert into t values (1)'));
    const target = join(dir, `target-${++files}.sqlite`);
    writeFileSync(target, 'precious');
    await rejects(tenant.exportFile(target), { code: 'FILE_EXISTS' });
    equal(readFileSync(target, 'utf8'), 'precious');
    writeFileSync(`${target}-wal`, 'x');
    await rejects(tenant.exportFile(target, { overwrite: true }), { code: 'FILE_EXISTS' });
    equal(readFileSync(target, 'utf8'), 'precious');
    rmSync(`${target}-wal`);
    const report = await tenant.exportFile(target, { overwrite: true });
    equal(report.bytes, readFileSync(target).length);
    await rejects(tenant.exportFile(join(dir, 'absent', 'x.sqlite')), { code: 'IO_FAILED' });
    await rejects(tenant.exportFile(dir, { overwrite: true }), { code: 'FILE_EXISTS' });
    await rejects(tenant.exportFile(''), { code: 'INVALID_ARGUMENT' });
    await rejects(node.tenant('nobody').exportFile(join(dir, 'n.sqlite')), { code: 'TENANT_NOT_FOUND' });
  });

  it('leaves nothing when it is cancelled', async () => {
    const tenant = await imported(
      source('create table t (id integer primary key, a blob)', (db) =>
        db.exec(`with recursive n (i) as (values (1) union all select i + 1 from n where i < 20000)
          insert into t select i, randomblob(500) from n`),
      ),
    );
    const folder = join(dir, `cancel-${++files}`);
    mkdirSync(folder);
    const stop = new AbortController();
    const reason = new Error('enough');
    const exporting = tenant.exportFile(join(folder, 'x.sqlite'), {
      signal: stop.signal,
      onProgress: () => stop.abort(reason),
    });
    await rejects(exporting, (error) => error === reason);
    deepStrictEqual(readdirSync(folder), []);
    await tenant.exportFile(join(folder, 'x.sqlite'));
    deepStrictEqual(readdirSync(folder), ['x.sqlite']);
  });

  it('leaves nothing when the disk is full', async (t) => {
    const why = mountRefusal();
    if (why !== undefined) return t.skip(why);
    using disk = mountSmall(1024 * 1024);
    const tenant = await imported(
      source('create table t (id integer primary key, a blob)', (db) =>
        db.exec(`with recursive n (i) as (values (1) union all select i + 1 from n where i < 4000)
          insert into t select i, randomblob(500) from n`),
      ),
    );
    await rejects(tenant.exportFile(join(disk.dir, 'x.sqlite')), { code: 'DISK_FULL' });
    deepStrictEqual(readdirSync(disk.dir), []);
  });
});

function patch(file: string, offset: number, bytes: Uint8Array): void {
  const descriptor = openSync(file, 'r+');
  writeSync(descriptor, bytes, 0, bytes.length, offset);
  closeSync(descriptor);
}
