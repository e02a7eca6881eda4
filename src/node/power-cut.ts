/**
 * Power cuts with the writes that SQLite and the log really make: a process is run under strace, its writes, syncs and
 * directory changes are recorded, and the directory is put together as a power cut at any of them may leave it
 * (`power-cut-disk.ts`). Every such directory must open, hold each write that was acknowledged before the cut, hold no
 * write in part, and verify.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { createReadStream, mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { seededRandom, type SeededRandom } from '../base/random.ts';
import { isNostosError } from '../base/errors.ts';
import { openNode } from './open-node.ts';
import { TracedDisk, type CutStyle } from './power-cut-disk.ts';
import { CUT_IMPORT, CUT_LIMITS, CUT_PARTS, bodyOf, makeImportFile, type CutAck } from './power-cut-load.ts';
import { TraceParser, type TraceStep } from './power-cut-trace.ts';
import type { Node } from './types.ts';

export interface PowerCutOptions {
  readonly cuts: number;
  readonly seed: number;
  /** Writes of the recorded process per opening of its node, of which there are three. */
  readonly writes?: number;
  readonly onProgress?: (progress: {
    readonly cut: number;
    readonly step: number;
    readonly acknowledged: number;
  }) => void;
}

export interface PowerCutReport {
  readonly cuts: number;
  readonly seed: number;
  /** Steps of the trace that changed the disk: each is a place to cut. */
  readonly places: number;
  readonly writes: number;
  readonly syncs: number;
  /** Acknowledged writes that were looked for, over all cuts. */
  readonly checked: number;
}

const CALLS =
  'open,openat,creat,write,pwrite64,pwritev,pwritev2,writev,ftruncate,truncate,fallocate,fsync,fdatasync,' +
  'rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,copy_file_range,sendfile,splice';
const STYLES: readonly CutStyle[] = ['nothing', 'mixed', 'mixed', 'mixed', 'everything'];

/** Why no writes can be recorded here; undefined where they can. */
export function straceRefusal(): string | undefined {
  const { status, error, stderr } = spawnSync('strace', ['-o', '/dev/null', 'true'], { encoding: 'utf8' });
  if (status === 0) return undefined;
  return `strace is not usable here: ${error?.message ?? stderr.trim()}`;
}

export async function runPowerCuts(options: PowerCutOptions): Promise<PowerCutReport> {
  const { cuts, seed, writes = 60 } = options;
  const work = realpathSync(mkdtempSync(join(tmpdir(), 'nostos-power-cut-')));
  try {
    const root = join(work, 'data');
    const trace = join(work, 'trace');
    const importFile = join(work, 'import.sqlite');
    makeImportFile(importFile);
    await record({ root, trace, importFile, seed, writes });
    const random = seededRandom(seed);
    const places = await countPlaces(root, trace);
    const chosen = choose(places, cuts, random);
    const disk = new TracedDisk(root);
    const known = new Acknowledged();
    const report = { cuts: chosen.length, seed, places, writes: 0, syncs: 0, checked: 0 };
    let place = 0;
    let cut = 0;
    for await (const step of steps(trace)) {
      disk.take(step);
      known.take(step);
      if (!isPlace(step, root)) continue;
      for (; chosen[cut] === place; cut += 1) {
        const style = STYLES[cut % STYLES.length]!;
        const image = join(work, `cut-${cut}`);
        mkdirSync(image);
        disk.writeImage(image, random, style, isIrrelevant);
        try {
          report.checked += await check(image, known);
        } catch (error) {
          throw new Error(
            `seed ${seed}, cut ${cut} at step ${place} of ${places}, unsynced ${style}: ${String(error)}`,
            {
              cause: error,
            },
          );
        }
        rmSync(image, { recursive: true, force: true });
        options.onProgress?.({ cut: cut + 1, step: place, acknowledged: known.count });
      }
      place += 1;
    }
    return { ...report, writes: disk.writes, syncs: disk.syncs };
  } finally {
    if (process.env['NOSTOS_KEEP'] === undefined) rmSync(work, { recursive: true, force: true });
  }
}

interface Recording {
  readonly root: string;
  readonly trace: string;
  readonly importFile: string;
  readonly seed: number;
  readonly writes: number;
}

async function record({ root, trace, importFile, seed, writes }: Recording): Promise<void> {
  mkdirSync(root);
  const script = fileURLToPath(new URL(`./power-cut-child${extname(import.meta.url)}`, import.meta.url));
  const child = spawn(
    'strace',
    // prettier-ignore
    ['-f', '-y', '-xx', '-s', '2000000', '--signal=none', '-o', trace, '-e', `trace=${CALLS}`,
      process.execPath, script, root, String(seed), String(writes), importFile],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let stderr = '';
  child.stdout.resume(); // what it says is in the trace, at its place
  child.stderr.on('data', (chunk: Buffer) => (stderr = (stderr + chunk.toString()).slice(-4_000)));
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
  // strace ends as the process that it watched: killed, when that had done all its work.
  if (signal !== 'SIGKILL')
    throw new Error(`the recorded process failed (${signal ?? `exit code ${code}`}): ${stderr}`);
}

async function* steps(trace: string): AsyncGenerator<TraceStep> {
  const parser = new TraceParser();
  const input = createReadStream(trace, { encoding: 'latin1', highWaterMark: 1024 * 1024 });
  for await (const line of createInterface({ input, crlfDelay: Infinity })) yield* parser.take(line);
}

async function countPlaces(root: string, trace: string): Promise<number> {
  let places = 0;
  for await (const step of steps(trace)) if (isPlace(step, root)) places += 1;
  return places;
}

const SYNCS = new Set(['fsync', 'fdatasync']);

/** Whether a power cut right after this step may leave something else than one right before it. */
function isPlace({ at, call }: TraceStep, root: string): boolean {
  if (at !== 'end' && !SYNCS.has(call.name)) return false;
  return call.args.some(({ path, bytes }) => (path ?? (isPath(call.name) ? bytes?.toString() : ''))?.startsWith(root));
}

function isPath(name: string): boolean {
  return !name.includes('write');
}

function choose(places: number, cuts: number, random: SeededRandom): number[] {
  if (cuts >= places) return Array.from({ length: places }, (_, place) => place);
  const chosen = new Set<number>();
  while (chosen.size < cuts) chosen.add(random.below(places));
  return [...chosen].toSorted((a, b) => a - b);
}

/** The lock and the socket are of processes that are gone; SQLite builds `-shm` anew. */
function isIrrelevant(name: string): boolean {
  return name === 'lock' || name.startsWith('lock-') || name === 'admin.sock' || name.endsWith('-shm');
}

/** What the process had been told when the power went. */
class Acknowledged {
  readonly written = new Map<string, Set<number>>();
  readonly versions = new Map<string, number>();
  readonly dropped = new Set<string>();
  imported = false;
  #rest = '';

  get count(): number {
    let count = 0;
    for (const ids of this.written.values()) count += ids.size;
    return count;
  }

  take({ at, call }: TraceStep): void {
    // Said when the call begins: by then the process knew.
    if (at !== 'begin' || call.name !== 'write' || !call.args[0]!.text.startsWith('1<')) return;
    const lines = (this.#rest + call.args[1]!.bytes!.toString()).split('\n');
    this.#rest = lines.pop()!;
    for (const line of lines) this.#add(JSON.parse(line) as CutAck);
  }

  #add(ack: CutAck): void {
    switch (ack.kind) {
      case 'written': {
        const ids = this.written.get(ack.tenant) ?? new Set();
        this.written.set(ack.tenant, ids.add(ack.id));
        return;
      }
      case 'migrated':
        this.versions.set(ack.tenant, ack.version);
        return;
      case 'imported':
        this.imported = true;
        return;
      case 'dropped':
        this.dropped.add(ack.tenant);
        return;
      default:
        ack satisfies never;
    }
  }
}

/** An import that was acknowledged is whole; one that was not is whole, or not there, or says that it is unfinished. */
async function checkImport(node: Node, acknowledged: boolean): Promise<void> {
  const tenant = node.tenant(CUT_IMPORT.tenant);
  try {
    const rows = await tenant.query<{ id: number; body: Uint8Array }>('select id, body from old order by id');
    const wrong = rows.find(({ id, body }, index) => id !== index + 1 || !Buffer.from(body).equals(bodyOf(id, 0)));
    if (rows.length !== CUT_IMPORT.rows || wrong !== undefined)
      throw new Error(`the import has ${rows.length} of ${CUT_IMPORT.rows} rows, row ${wrong?.id} is wrong`);
  } catch (error) {
    const cutOff = isNostosError(error, 'IMPORT_UNFINISHED') || isNostosError(error, 'TENANT_NOT_FOUND');
    // Cut off right after the tenant was made, it is an empty one.
    const begun = cutOff || (await tenant.status()).schemaVersion > 0;
    if (acknowledged || (begun && !cutOff)) throw error;
  }
}

/** Opens what is left and looks for everything that was acknowledged; answers with how many writes were found. */
async function check(dir: string, known: Acknowledged): Promise<number> {
  let found = 0;
  await using node = await openNode({ dir, scrubIntervalMs: false, limits: CUT_LIMITS });
  for (const name of known.dropped)
    if ((await node.tenants.get(name)) !== undefined) throw new Error(`tenant ${name}, which was dropped, is there`);
  for (const [name, version] of known.versions) {
    const { schemaVersion } = await node.tenant(name).status();
    if (schemaVersion < version) throw new Error(`tenant ${name} has schema version ${schemaVersion} of ${version}`);
  }
  await checkImport(node, known.imported);
  for (const { name, schemaVersion } of await node.tenants.list()) {
    if (name === CUT_IMPORT.tenant) continue;
    const expected = known.dropped.has(name) ? undefined : known.written.get(name);
    const version = Math.max(schemaVersion, (await node.tenant(name).status()).schemaVersion);
    if (version === 0) {
      if (expected !== undefined) throw new Error(`tenant ${name} is empty`);
      continue;
    }
    const rows = await node
      .tenant(name)
      .query<{ id: number; part: number; body: Uint8Array }>('select id, part, body from parts order by id, part');
    const parts = new Map<number, number>();
    for (const { id, part, body } of rows) {
      if (!Buffer.from(body).equals(bodyOf(id, part)))
        throw new Error(`tenant ${name}: part ${part} of ${id} is wrong`);
      parts.set(id, (parts.get(id) ?? 0) + 1);
    }
    for (const [id, count] of parts)
      if (count !== CUT_PARTS)
        throw new Error(`tenant ${name}: write ${id} is there in part, ${count} of ${CUT_PARTS}`);
    const [total] = await node.tenant(name).query<{ writes: number }>('select writes from total');
    if (total!.writes !== parts.size) throw new Error(`tenant ${name}: ${parts.size} writes, counted ${total!.writes}`);
    for (const id of expected ?? [])
      if (!parts.has(id)) throw new Error(`tenant ${name}: acknowledged write ${id} is lost`);
    found += expected?.size ?? 0;
  }
  const report = await node.verify();
  if (!report.ok) throw new Error(`verify: ${JSON.stringify(report.problems)}`);
  // It goes on from there.
  await node.tenants.create('afterwards');
  return found;
}
