/**
 * Clients that write and read a group all the time, wherever its primary seems to be, and what must be true of their answers:
 *
 * - registers: leased reads, writes and replacements, each under an id and tried again while its outcome is not known, and
 *   reads on any member with the position of an own write as `min`. The history is linearizable; such a read may come as
 *   early as that write was called, since the member need not have more;
 * - rows of `quorum` writes: on every member, once, and found at once on any member asked with their position;
 * - rows of `local` writes, in a tenant of their own: on every member, or in a rollback file.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Position } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { systemDisk } from '../base/disk.ts';
import type { SeededRandom } from '../base/random.ts';
import { listRollbackFiles } from '../rollback/file/list.ts';
import { showFile } from '../rollback/show.ts';
import { checkLinearizability, type Operation, type RegisterStep } from '../testing/linearizability.ts';
import { LOCAL_TENANT, type Calls, type Method } from './group-child.fixture.ts';
import { until, type Member } from './group-harness-member.fixture.ts';

export interface CheckReport {
  readonly operations: number;
  readonly inserted: number;
  readonly unknown: number;
  /** Writes that were answered after their outcome had not been known. */
  readonly retried: number;
  /** Reads that were answered with `min`. */
  readonly behindMin: number;
  readonly local: number;
  /** Rows of `local` writes that were dropped, and are in a file. */
  readonly preserved: number;
}

export interface Asked {
  readonly members: readonly Member[];
  readonly dirs: readonly string[];
  readonly random: SeededRandom;
}

interface Open {
  readonly key: string;
  readonly client: number;
  readonly calledMs: number;
  answeredMs: number;
  step: RegisterStep;
  /** It did not happen, and why. */
  refused: string | undefined;
}

interface To {
  /** Which member is asked. */
  readonly at: number;
  readonly client: number;
  readonly key: number;
}

type Written = { readonly position: Position };

const CLIENTS = 4;
const KEYS = 3;
/** A client that waits so long goes on as another one; its answer still counts when it comes. */
const PATIENCE_MS = 1_000;
const PAUSE_MS = 10;
const REFUSED_PAUSE_MS = 30;
const RETRY_PAUSE_MS = 50;
const RETRIES_MAX = 200;
const MIN_TIMEOUT_MS = 1_500;
/** What members may say while they are disturbed: that they do not lead, do not know, are behind, or have no room. */
const EXPECTED = new Set([
  'NOT_PRIMARY',
  'OUTCOME_UNKNOWN',
  'CLOSED',
  'DISK_FULL',
  'BUSY',
  'QUERY_TIMEOUT',
  'IO_FAILED',
]);
const REFUSALS = new Set(['NOT_PRIMARY', 'DISK_FULL']);

export class Clients {
  readonly #asked: Asked;
  #history: Open[] = [];
  readonly #acknowledged = new Set<number>();
  readonly #local = new Set<number>();
  readonly #preserved = new Set<number>();
  readonly #filesSeen = new Set<string>();
  readonly #codes = new Map<string, number>();
  #running: Promise<unknown> | undefined;
  #stopping = false;
  #round = 0;
  #nextClient = 1;
  #nextId = 1;
  #answered = 0;
  #retried = 0;
  #behindMin = 0;

  constructor(asked: Asked) {
    this.#asked = asked;
  }

  /** Writes and leased reads that were answered. */
  get answered(): number {
    return this.#answered;
  }

  get codes(): ReadonlyMap<string, number> {
    return this.#codes;
  }

  /** Begins a round, on registers of its own. */
  start(): void {
    this.#stopping = false;
    this.#round += 1;
    this.#history = [];
    this.#running = Promise.all(Array.from({ length: CLIENTS }, () => this.#run()));
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }

  /** Waits for `count` more answers: the group serves. */
  async served(count = 20, timeoutMs?: number): Promise<void> {
    const goal = this.#answered + count;
    await until(
      `${count} answers`,
      () => this.#answered >= goal,
      timeoutMs,
      () => JSON.stringify([...this.#codes]),
    );
  }

  async #run(): Promise<void> {
    const { random, members } = this.#asked;
    const known = new Map<number, string | null>();
    // Each finds the primary for itself: one that was cut off is still asked by those who do not know.
    let at = random.below(members.length);
    while (!this.#stopping) {
      const client = this.#nextClient++;
      const to = { at, client, key: this.#round * 100 + random.below(KEYS) };
      const kind = random.below(20);
      if (kind < 7) {
        // Whoever believes that it leads answers: all of them are asked.
        await this.#read({ ...to, at: random.below(members.length) }, known);
        await sleep(PAUSE_MS);
        continue;
      }
      const ok = await this.#write(kind, to, known);
      if (!ok) at = (at + 1) % members.length;
      await sleep(ok ? PAUSE_MS : REFUSED_PAUSE_MS);
    }
  }

  #write(kind: number, to: To, known: Map<number, string | null>): Promise<boolean> {
    if (kind < 14) return this.#replace(to, known);
    if (kind < 16) return this.#put(to, known);
    return kind < 18 ? this.#insert(to.at) : this.#insertLocal(to.at);
  }

  async #read(to: To, known: Map<number, string | null>): Promise<boolean> {
    const asked = this.#ask(to.at, 'read', { key: to.key });
    return this.#record(to, { kind: 'read', value: null }, asked, (value) => {
      known.set(to.key, value);
      return { kind: 'read', value };
    });
  }

  async #replace(to: To, known: Map<number, string | null>): Promise<boolean> {
    const { key } = to;
    const [expected, value] = [known.get(key) ?? null, `${to.client}`];
    const step: RegisterStep = { kind: 'replace', expected, value };
    const asked = this.#persist(to.at, 'replace', { key, expected, value, id: `replace ${value}` });
    return this.#record(to, step, asked, ({ found }) => {
      known.set(key, found === expected ? value : found);
      return found === expected ? step : { kind: 'read', value: found };
    });
  }

  async #put(to: To, known: Map<number, string | null>): Promise<boolean> {
    const { key } = to;
    const value = `${to.client}`;
    const step: RegisterStep = { kind: 'write', value };
    const calledMs = performance.now();
    const asked = this.#persist(to.at, 'put', { key, value, id: `put ${value}` });
    void asked.then((written) => this.#readBehind(to, calledMs, written)).catch(() => {}); // told by the write
    return this.#record(to, step, asked, () => {
      known.set(key, value);
      return step;
    });
  }

  /** On any member, what is at least as new as the write with this position. */
  async #readBehind({ key }: To, calledMs: number, { position: min }: Written): Promise<void> {
    const { members, random } = this.#asked;
    const to = { at: random.below(members.length), client: this.#nextClient++, key };
    const asked = this.#ask(to.at, 'readBehind', { key, min, timeoutMs: MIN_TIMEOUT_MS });
    const ok = await this.#record(to, { kind: 'read', value: null }, asked, (value) => ({ kind: 'read', value }), {
      calledMs,
    });
    if (ok) this.#behindMin += 1;
  }

  async #insert(at: number): Promise<boolean> {
    const id = this.#nextId++;
    const inserted = this.#persist(at, 'insert', { ids: [id], id: `insert ${id}` }).then(
      (written) => {
        this.#answered += 1;
        this.#acknowledged.add(id);
        void this.#find(id, written);
        return true;
      },
      (error: unknown) => this.#failed(error),
    );
    return Promise.race([inserted, sleep(PATIENCE_MS, false)]);
  }

  /** A row that was acknowledged is on whichever member is asked for it with its position. */
  async #find(id: number, { position: min }: Written): Promise<void> {
    const { members, random } = this.#asked;
    const at = random.below(members.length);
    try {
      const found = await this.#ask(at, 'has', { id, min, timeoutMs: MIN_TIMEOUT_MS });
      if (!found) throw new Error(`member ${at} has no row ${id} at ${JSON.stringify(min)}`);
      this.#behindMin += 1;
    } catch (error) {
      this.#failed(error);
    }
  }

  async #insertLocal(at: number): Promise<boolean> {
    const id = this.#nextId++;
    const inserted = this.#ask(at, 'insertLocal', { ids: [id] }).then(
      () => {
        this.#local.add(id);
        return true;
      },
      (error: unknown) => this.#failed(error),
    );
    return Promise.race([inserted, sleep(PATIENCE_MS, false)]);
  }

  #ask<M extends Method>(at: number, method: M, input: Calls[M][0]): Promise<Calls[M][1]> {
    return this.#asked.members[at]!.ask(method, input, Infinity);
  }

  /** Again, wherever the primary may be by now, while it is not known whether it was kept: under its id it is done once. */
  async #persist<M extends 'put' | 'replace' | 'insert'>(
    first: number,
    method: M,
    input: Calls[M][0],
  ): Promise<Calls[M][1]> {
    for (let [at, tries, unknown] = [first, 0, false]; ; tries += 1) {
      try {
        const output = await this.#ask(at, method, input);
        if (unknown) this.#retried += 1;
        return output;
      } catch (error) {
        const code = error instanceof NostosError ? error.code : '';
        const isRefused = REFUSALS.has(code);
        if (!EXPECTED.has(code) || (isRefused && !unknown)) throw error;
        // Refused now, and done perhaps by an earlier try.
        if (this.#stopping || tries >= RETRIES_MAX)
          throw isRefused ? new NostosError('OUTCOME_UNKNOWN', 'an earlier try may have been kept') : error;
        this.#failed(error);
        unknown = true;
        at = (at + 1) % this.#asked.members.length;
        await sleep(RETRY_PAUSE_MS);
      }
    }
  }

  async #record<T>(
    { client, key }: To,
    asked: RegisterStep,
    answer: Promise<T>,
    stepOf: (output: T) => RegisterStep,
    { calledMs = performance.now() }: { readonly calledMs?: number } = {},
  ): Promise<boolean> {
    const entry: Open = { key: `${key}`, client, calledMs, answeredMs: Infinity, step: asked, refused: undefined };
    this.#history.push(entry);
    const told = answer.then(
      (output) => {
        this.#answered += 1;
        entry.answeredMs = performance.now();
        entry.step = stepOf(output);
        return true;
      },
      (error: unknown) => {
        if (error instanceof NostosError && REFUSALS.has(error.code)) entry.refused = error.message;
        return this.#failed(error);
      },
    );
    return Promise.race([told, sleep(PATIENCE_MS, false)]);
  }

  #failed(error: unknown): false {
    const code = error instanceof NostosError ? error.code : String(error);
    const known = EXPECTED.has(code) ? code : `${code}: ${(error as Error).message}`;
    this.#codes.set(known, (this.#codes.get(known) ?? 0) + 1);
    return false;
  }

  /** Ends the round: what the clients saw could have come from one copy. */
  async check(): Promise<Pick<CheckReport, 'operations' | 'unknown'>> {
    await this.served();
    await this.stop();
    const history: Operation[] = this.#history.filter(({ refused }) => refused === undefined);
    const verdict = checkLinearizability(history, { initial: null });
    if (!verdict.linearizable) throw new Error(`not linearizable: ${describe(verdict, this.#history)}`);
    const strange = [...this.#codes.keys()].filter((code) => !EXPECTED.has(code));
    if (strange.length > 0) throw new Error(`clients were told: ${strange.join('; ')}`);
    return {
      operations: history.length,
      unknown: history.filter(({ answeredMs }) => answeredMs === Infinity).length,
    };
  }

  /** Every acknowledged row is on every member; of `local` writes, there or in a file. */
  async checkRows(): Promise<Omit<CheckReport, 'operations' | 'unknown'>> {
    const { members } = this.#asked;
    await this.#readRollbackFiles();
    for (const [index, member] of members.entries()) {
      const ids = new Set(await member.ask('ids', undefined));
      const lost = [...this.#acknowledged].filter((id) => !ids.has(id));
      if (lost.length > 0) throw new Error(`member ${index} lacks acknowledged rows ${lost.slice(0, 20).join(', ')}`);
      const local = new Set(await member.ask('localIds', undefined));
      const dropped = [...this.#local].filter((id) => !local.has(id) && !this.#preserved.has(id));
      if (dropped.length > 0)
        throw new Error(`rows ${dropped.slice(0, 20).join(', ')} of local writes are in no rollback file`);
    }
    return {
      inserted: this.#acknowledged.size,
      retried: this.#retried,
      behindMin: this.#behindMin,
      local: this.#local.size,
      preserved: this.#preserved.size,
    };
  }

  /** Rows of local writes in whole files of any member, with the flag of what had been acknowledged. */
  async #readRollbackFiles(): Promise<void> {
    for (const dir of this.#asked.dirs.map((each) => join(each, 'rollback'))) {
      if (!systemDisk.exists(dir)) continue;
      const names = readdirSync(dir).filter((name) => !this.#filesSeen.has(join(dir, name)));
      if (names.length === 0) continue;
      for (const { state, path } of await listRollbackFiles(systemDisk, dir)) {
        if (state !== 'whole' || this.#filesSeen.has(path)) continue;
        this.#filesSeen.add(path);
        for await (const shown of showFile(systemDisk, path))
          if (shown.kind === 'row' && shown.tenant === LOCAL_TENANT && shown.op === 'insert' && shown.acknowledged)
            this.#preserved.add(Number(shown.key.id));
      }
    }
  }

  /** For faults that write by themselves: these ids must never be lost. */
  acknowledge(ids: readonly number[]): void {
    for (const id of ids) this.#acknowledged.add(id);
  }

  /** The same of `local` writes: on every member, or in a file. */
  acknowledgeLocal(ids: readonly number[]): void {
    for (const id of ids) this.#local.add(id);
  }

  isPreserved(id: number): boolean {
    return this.#preserved.has(id);
  }

  newIds(count: number): readonly number[] {
    return Array.from({ length: count }, () => this.#nextId++);
  }
}

function describe(
  { key, blocked, order }: { key: string; blocked: Operation; order: readonly Operation[] },
  history: readonly Open[],
): string {
  const line = ({ client, calledMs, answeredMs, step, refused }: Operation & Partial<Pick<Open, 'refused'>>): string =>
    `${client} ${calledMs.toFixed(1)}..${answeredMs.toFixed(1)} ${JSON.stringify(step)} ${refused ?? ''}`;
  const { step } = blocked;
  const met = step.kind === 'replace' ? step.expected : step.value;
  const writes = history.filter((entry) => entry.step.kind !== 'read' && entry.step.value === met);
  const lines = [...order.slice(-12), blocked].map(line);
  return `register ${key}, the last one fits nowhere:\n${lines.join('\n')}\nwrites of ${met}:\n${writes.map(line).join('\n')}`;
}
