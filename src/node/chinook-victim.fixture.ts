/** Writes to an imported Chinook database until it is killed. Argument: data directory. */
import { writeSync } from 'node:fs';
import { openNode } from './open-node.ts';

/** Write number `id`, the same on Nostos and on plain SQLite: rows of several tables, an update and a delete. */
export function chinookWrite(run: (sql: string, values: (number | bigint | string)[]) => unknown, id: number): void {
  const whole = BigInt(id);
  run('insert into Playlist (PlaylistId, Name) values (?, ?)', [whole + 100_000n, `written ${id}`]);
  run('insert into PlaylistTrack (PlaylistId, TrackId) select ?, TrackId from Track where TrackId % 500 = ?', [
    whole + 100_000n,
    whole % 500n,
  ]);
  run('update Track set UnitPrice = UnitPrice + 0.5 where TrackId = ?', [(whole % 3_503n) + 1n]);
  run('delete from PlaylistTrack where PlaylistId = 1 and TrackId = ?', [whole]);
}

if (import.meta.main) {
  await using node = await openNode({ dir: process.argv[2]!, scrubIntervalMs: false });
  const tenant = node.tenant('music');
  let next = 1;
  const writer = async (): Promise<void> => {
    for (;;) {
      const id = next++;
      writeSync(1, `+${id}\n`);
      await tenant.write((tx) => chinookWrite((sql, values) => tx.run(sql, values), id));
      writeSync(1, `=${id}\n`);
    }
  };
  await Promise.all(Array.from({ length: 8 }, writer));
}
