/**
 * A group of real node processes on an embedded coordinator or a real etcd, with a network in between that can be disturbed
 * (`group-harness-links.fixture.ts`), clients that write and read all the time, and the checks that follow each fault: the group
 * commits again, all copies are equal, no acknowledged write is lost, and the history of the clients is linearizable.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { BootId, StoreId } from '../base/brands.ts';
import { deserializeError, NostosError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import { seededRandom, type SeededRandom } from '../base/random.ts';
import { initGroup } from './group-init.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { EtcdCluster } from '../testing/etcd-cluster.ts';
import { checkLinearizability, type Operation, type RegisterStep } from '../testing/linearizability.ts';
import { MIGRATIONS, TENANT, type Calls, type FromChild, type Method } from './group-child.fixture.ts';
import { Links } from './group-harness-links.fixture.ts';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';
import type { NodeOptions, NodeStatus } from './types.ts';

/** Times at which a group of one machine moves quickly, and yet not because the machine is busy. */
export const HARNESS_LIMITS = {
  leaseMs: 1_200,
  renewIntervalMs: 250,
  coordinatorPollMs: 100,
  coordinatorRetryMs: 100,
  ackTimeoutMs: 500,
  streamHeartbeatMs: 100,
  streamTimeoutMs: 600,
  reopenMs: 20,
  probeWaitMs: 100,
  termStartTimeoutMs: 3_000,
  commitStallMs: 1_200,
  candidateBackoffMs: 200,
  candidateBackoffMaxMs: 1_000,
  handoverTimeoutMs: 1_500,
  segmentBytesMax: 1024 * 1024,
  recordBytesMax: 512 * 1024,
  lockTimeoutMs: 1_000,
} as const satisfies Partial<Limits>;

const ASK_TIMEOUT_MS = 10_000;
const OPEN_TIMEOUT_MS = 20_000;
/** Everything that a group has to wait out before it goes on, many times over. */
export const SETTLE_MS = 20_000;
const MEMBERS = 3;

export type Opened = { readonly store: StoreId; readonly boot: BootId };

/** The process of one member; the next one of the same directory is a new `Member`. */
export class Member {
  readonly #process: ChildProcess;
  readonly #waiting = new Map<number, { resolve(output: unknown): void; reject(error: unknown): void }>();
  readonly #exited: Promise<unknown>;
  readonly #errors: string[] = [];
  #nextId = 1;
  #opened: Opened | undefined;
  readonly opened: Promise<Opened>;

  constructor(options: NodeOptions, environment: { readonly clockFile?: string } = {}) {
    const url = (name: string): URL => new URL(`./${name}${extname(import.meta.url)}`, import.meta.url);
    const { clockFile } = environment;
    const flags = clockFile === undefined ? [] : ['--import', url('group-harness-clock.fixture').href];
    this.#process = spawn(
      process.execPath,
      [...flags, fileURLToPath(url('group-child.fixture')), JSON.stringify(options)],
      {
        stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
        env: { ...process.env, ...(clockFile === undefined ? {} : { NOSTOS_TEST_CLOCK: clockFile }) },
      },
    );
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => this.#errors.push(text));
    this.#exited = once(this.#process, 'exit');
    const { promise, resolve, reject } = Promise.withResolvers<Opened>();
    this.opened = promise;
    promise.catch(() => {});
    this.#process.on('message', (message: FromChild) => {
      if ('opened' in message) resolve((this.#opened = message.opened));
      else if ('failed' in message) reject(deserializeError(message.failed));
      else this.#answer(message);
    });
    this.#process.once('exit', () => {
      const gone = new NostosError('CLOSED', `the process has ended ${this.#errors.join('').slice(0, 2_000)}`);
      reject(gone);
      for (const waiting of this.#waiting.values()) waiting.reject(gone);
      this.#waiting.clear();
    });
  }

  get store(): StoreId | undefined {
    return this.#opened?.store;
  }

  get alive(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  ask<M extends Method>(method: M, input: Calls[M][0], timeoutMs = ASK_TIMEOUT_MS): Promise<Calls[M][1]> {
    const id = this.#nextId++;
    const asked = new Promise<Calls[M][1]>((resolve, reject) => {
      if (!this.#process.connected) return reject(new NostosError('CLOSED', 'the process has ended'));
      this.#waiting.set(id, { resolve, reject });
      this.#process.send({ id, method, input }, (error) => {
        if (error !== null) this.#take(id)?.reject(new NostosError('CLOSED', error.message));
      });
    });
    if (timeoutMs === Infinity) return asked;
    const late = AbortSignal.timeout(timeoutMs);
    return Promise.race([
      asked,
      once(late, 'abort').then(() => Promise.reject(new NostosError('NETWORK_TIMEOUT', `${method} was not answered`))),
    ]);
  }

  #take(id: number): { resolve(output: unknown): void; reject(error: unknown): void } | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  #answer(message: Extract<FromChild, { id: number }>): void {
    const waiting = this.#take(message.id);
    if ('error' in message) waiting?.reject(deserializeError(message.error));
    else waiting?.resolve(message.output);
  }

  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#exited;
  }

  /** SIGSTOP; `resume` is SIGCONT. */
  pause(): void {
    this.#process.kill('SIGSTOP');
  }

  resume(): void {
    this.#process.kill('SIGCONT');
  }

  /** Closes the node; the process ends by itself. */
  async close(): Promise<void> {
    if (this.alive && this.#opened !== undefined) {
      await this.ask('close', undefined, OPEN_TIMEOUT_MS).catch(() => this.#process.kill('SIGKILL'));
    } else this.#process.kill('SIGKILL');
    await this.#exited;
  }
}

/** A coordinator that can go away, for all members or for one, come back, and be set back to what it was. */
export interface HarnessCoordinator extends AsyncDisposable {
  urlOf(index: number): string;
  away(): Promise<void>;
  back(): Promise<void>;
  /** What only a coordinator in a directory of ours can do. */
  readonly onDisk?: {
    /** It is away for one member. */
    awayFor(index: number): void;
    /** Keeps what is there now; the answer sets the coordinator back to that, until it is `back`. */
    image(): () => void;
  };
}

/** Each member reaches the directory of the group's record through a link of its own, which is replaced at once. */
class EmbeddedHarness implements HarnessCoordinator {
  readonly #dir: string;
  #images = 0;

  constructor(dir: string) {
    this.#dir = dir;
    for (const common of ['main', 'members']) mkdirSync(join(dir, common), { recursive: true });
    for (let index = 0; index < MEMBERS; index += 1) {
      mkdirSync(join(dir, `${index}`, 'groups'), { recursive: true });
      symlinkSync(join(dir, 'members'), join(dir, `${index}`, 'members'));
      this.#pointTo('main', index);
    }
  }

  urlOf(index: number): string {
    return `embedded:${join(this.#dir, `${index}`)}`;
  }

  #pointTo(target: string, index: number): void {
    const link = join(this.#dir, `${index}`, 'groups', 'main');
    rmSync(`${link}.new`, { force: true });
    symlinkSync(join(this.#dir, target), `${link}.new`);
    renameSync(`${link}.new`, link);
  }

  #pointAllTo(target: string): void {
    for (let index = 0; index < MEMBERS; index += 1) this.#pointTo(target, index);
  }

  async away(): Promise<void> {
    for (let index = 0; index < MEMBERS; index += 1) this.onDisk.awayFor(index);
  }

  async back(): Promise<void> {
    this.#pointAllTo('main');
  }

  readonly onDisk = {
    /** A file, which cannot be listed: without an answer, rather than empty. */
    awayFor: (index: number): void => {
      writeFileSync(join(this.#dir, 'no-directory'), '');
      this.#pointTo('no-directory', index);
    },
    image: (): (() => void) => {
      const copy = `image${++this.#images}`;
      cpSync(join(this.#dir, 'main'), join(this.#dir, copy), { recursive: true });
      return () => this.#pointAllTo(copy);
    },
  };

  async [Symbol.asyncDispose](): Promise<void> {}
}

class EtcdHarness implements HarnessCoordinator {
  readonly #cluster: EtcdCluster;

  private constructor(cluster: EtcdCluster) {
    this.#cluster = cluster;
  }

  static async start(dir: string): Promise<EtcdHarness> {
    return new EtcdHarness(await EtcdCluster.start({ dir }));
  }

  urlOf(): string {
    return `etcd://${this.#cluster.endpoints.join(',')}?timeout-ms=1000&attempt-timeout-ms=500`;
  }

  away(): Promise<void> {
    return this.#cluster.killAll();
  }

  back(): Promise<void> {
    return this.#cluster.startAll();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#cluster.close();
  }
}

export interface ClusterOptions {
  readonly coordinator?: 'embedded' | 'etcd';
  readonly seed?: number;
  /** Where the directory of a member is; by default all are beside each other. */
  readonly dirOf?: (index: number) => string | undefined;
  readonly limits?: Partial<Limits>;
}

export class GroupCluster implements AsyncDisposable {
  readonly root: string;
  readonly dirs: readonly string[];
  readonly coordinator: HarnessCoordinator;
  readonly links: Links;
  readonly members: Member[] = [];
  readonly random: SeededRandom;
  readonly #limits: Partial<Limits>;
  readonly #boots = new Map<string, number>();
  #proxies: readonly string[] = [];
  #clients: Clients;

  private constructor(root: string, coordinator: HarnessCoordinator, options: ClusterOptions) {
    this.root = root;
    this.coordinator = coordinator;
    this.random = seededRandom(options.seed ?? 1);
    this.#limits = { ...HARNESS_LIMITS, ...options.limits };
    this.dirs = Array.from({ length: MEMBERS }, (_, index) => options.dirOf?.(index) ?? join(root, `node${index}`));
    this.links = new Links(MEMBERS, { identify: (boot) => this.#identify(boot) });
    this.#clients = new Clients(this);
  }

  /** Three members, all in sync, two of which suffice. */
  static async start(options: ClusterOptions = {}): Promise<GroupCluster> {
    const root = mkdtempSync(join(tmpdir(), 'nostos-cluster-'));
    const coordinator =
      options.coordinator === 'etcd' ? await EtcdHarness.start(root) : new EmbeddedHarness(join(root, 'coordinator'));
    const cluster = new GroupCluster(root, coordinator, options);
    try {
      await cluster.#make();
      await cluster.#join();
      return cluster;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  get clients(): Clients {
    return this.#clients;
  }

  /** A directory that leads its own log, and copies of it. */
  async #make(): Promise<void> {
    const [first = '', ...others] = this.dirs;
    {
      await using node = await openNode({
        dir: first,
        listen: { port: 0 },
        migrations: MIGRATIONS,
        scrubIntervalMs: false,
        limits: this.#limits,
      });
      const tenant = await node.tenants.create(TENANT);
      await tenant.write((tx) => void tx.run("insert into item values (0, 'before the group')"));
      for (const dir of others) await restoreNode({ dir, from: [node.address ?? ''] });
    }
    await using coordination = await openCoordinator(this.coordinator.urlOf(0));
    await initGroup(coordination.group(), first);
  }

  async #join(): Promise<void> {
    this.#proxies = await this.links.open();
    await Promise.all(this.dirs.map((_, index) => this.open(index)));
    const primary = await this.primary();
    for (const { store } of this.members)
      if (store !== undefined && store !== primary.store)
        await primary.ask('changeMembers', { add: store, minInSync: 2 });
    await this.settled();
  }

  nodeOptions(index: number, dir = this.dirs[index]!): NodeOptions {
    return {
      dir,
      migrations: MIGRATIONS,
      scrubIntervalMs: false,
      limits: this.#limits,
      group: { coordinator: this.coordinator.urlOf(index), listen: { port: 0 }, advertise: this.#proxies[index]! },
    };
  }

  /** Starts the process of a member that has none. */
  async open(index: number, environment: { readonly clockFile?: string } = {}): Promise<Member> {
    const member = new Member(this.nodeOptions(index), environment);
    this.members[index] = member;
    const { boot } = await member.opened;
    this.#boots.set(boot, index);
    const { group } = await member.ask('status', undefined);
    this.links.setTarget(index, group?.address);
    return member;
  }

  /** A boot changes with each opening of the log, also within one process. */
  async #identify(boot: string): Promise<number | undefined> {
    if (!this.#boots.has(boot))
      for (const [index, member] of this.members.entries()) {
        const status = await member.ask('status', undefined, 500).catch(() => undefined);
        if (status?.group !== undefined) this.#boots.set(status.group.boot, index);
      }
    return this.#boots.get(boot);
  }

  async statusOf(member: Member): Promise<NodeStatus | undefined> {
    return member.alive ? member.ask('status', undefined, 1_000).catch(() => undefined) : undefined;
  }

  /** Who leads and takes writes; of two who say so the one of the later term. */
  async primary(timeoutMs = SETTLE_MS, not?: Member): Promise<Member> {
    let found: { readonly member: Member; readonly term: number } | undefined;
    await until(
      'a member leads',
      async () => {
        for (const member of this.members) {
          if (member === not) continue;
          const status = await this.statusOf(member);
          if (status?.role !== 'primary' || status.group?.role !== 'leading') continue;
          if (status.group.term > (found?.term ?? 0)) found = { member, term: status.group.term };
        }
        return found !== undefined;
      },
      timeoutMs,
    );
    return found!.member;
  }

  async replicas(): Promise<readonly Member[]> {
    const primary = await this.primary();
    return this.members.filter((member) => member !== primary);
  }

  indexOf(member: Member): number {
    return this.members.indexOf(member);
  }

  othersOf(member: Member): readonly number[] {
    return [...this.members.keys()].filter((index) => this.members[index] !== member);
  }

  /** The group commits, and every member is in sync and has the same. */
  async settled(timeoutMs = SETTLE_MS): Promise<void> {
    let seen: unknown;
    const told = (): string => JSON.stringify(seen);
    await until(
      'all members are in sync and equal',
      async () => {
        const statuses = await Promise.all(this.members.map((member) => this.statusOf(member)));
        const primary = statuses.find((status) => status?.role === 'primary');
        seen = statuses.map((status) => status?.group);
        if (primary?.group?.record?.inSync.length !== MEMBERS) return false;
        const prints = await Promise.all(
          this.members.map((member) => member.ask('fingerprint', undefined, 2_000).catch(() => undefined)),
        );
        seen = [seen, prints];
        return new Set(prints.map((print) => print?.fingerprint ?? Math.random())).size === 1;
      },
      timeoutMs,
      told,
    );
  }

  /** What must hold after every fault, once everything works again. */
  async check(): Promise<CheckReport> {
    const report = await this.#clients.check();
    await this.settled();
    await this.#clients.checkRows();
    return report;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#clients.stop();
    for (const member of this.members) member.resume();
    await Promise.all(this.members.map((member) => member.kill()));
    this.links.close();
    await this.coordinator[Symbol.asyncDispose]();
    rmSync(this.root, { recursive: true, force: true });
  }
}

export interface CheckReport {
  readonly operations: number;
  readonly inserted: number;
  readonly unknown: number;
}

interface Open {
  readonly key: string;
  readonly client: number;
  readonly calledMs: number;
  answeredMs: number;
  step: RegisterStep;
  /** It did not happen. */
  refused: boolean;
}

interface To {
  /** Which member is asked. */
  readonly at: number;
  readonly client: number;
  readonly key: number;
}

const CLIENTS = 4;
const KEYS = 3;
/** A client that waits so long goes on as another one; its answer still counts when it comes. */
const PATIENCE_MS = 1_000;
const PAUSE_MS = 4;
const REFUSED_PAUSE_MS = 30;
/** What members may say while they are disturbed: that they do not lead, or do not know. */
const EXPECTED = new Set(['NOT_PRIMARY', 'OUTCOME_UNKNOWN', 'CLOSED', 'DISK_FULL', 'BUSY']);

/** Clients that read and write registers, and insert rows, wherever the primary seems to be. */
export class Clients {
  readonly #cluster: GroupCluster;
  #history: Open[] = [];
  readonly #acknowledged = new Set<number>();
  readonly #codes = new Map<string, number>();
  #running: Promise<unknown> | undefined;
  #stopping = false;
  #round = 0;
  #nextClient = 1;
  #nextId = 1;
  #answered = 0;

  constructor(cluster: GroupCluster) {
    this.#cluster = cluster;
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
  async served(count = 20, timeoutMs = SETTLE_MS): Promise<void> {
    const goal = this.#answered + count;
    await until(
      `${count} answers`,
      () => this.#answered >= goal,
      timeoutMs,
      () => JSON.stringify([...this.#codes]),
    );
  }

  async #run(): Promise<void> {
    const { random, members } = this.#cluster;
    const known = new Map<number, string | null>();
    // Each finds the primary for itself: one that was cut off is still asked by those who do not know.
    let at = random.below(members.length);
    while (!this.#stopping) {
      const client = this.#nextClient++;
      const key = this.#round * 100 + random.below(KEYS);
      const kind = random.below(10);
      const value = `${client}`;
      if (kind < 4) {
        // Whoever believes that it leads answers: all of them are asked.
        await this.#read({ at: random.below(members.length), client, key }, known);
        await sleep(PAUSE_MS);
        continue;
      }
      const to = { at, client, key };
      const ok =
        kind < 8
          ? await this.#replace(to, { key, value, expected: known.get(key) ?? null }, known)
          : kind < 9
            ? await this.#put(to, { key, value }, known)
            : await this.#insert(at);
      if (!ok) at = (at + 1) % members.length;
      await sleep(ok ? PAUSE_MS : REFUSED_PAUSE_MS);
    }
  }

  async #read(to: To, known: Map<number, string | null>): Promise<boolean> {
    const asked = this.#ask(to.at, 'read', { key: to.key });
    return this.#record(to, { kind: 'read', value: null }, asked, (value) => {
      known.set(to.key, value);
      return { kind: 'read', value };
    });
  }

  async #replace(to: To, call: Calls['replace'][0], known: Map<number, string | null>): Promise<boolean> {
    const { key, expected, value } = call;
    const step: RegisterStep = { kind: 'replace', expected, value };
    return this.#record(to, step, this.#ask(to.at, 'replace', call), (found) => {
      known.set(key, found === expected ? value : found);
      return found === expected ? step : { kind: 'read', value: found };
    });
  }

  async #put(to: To, call: Calls['put'][0], known: Map<number, string | null>): Promise<boolean> {
    const step: RegisterStep = { kind: 'write', value: call.value };
    return this.#record(to, step, this.#ask(to.at, 'put', call), () => {
      known.set(call.key, call.value);
      return step;
    });
  }

  async #insert(at: number): Promise<boolean> {
    const id = this.#nextId++;
    const inserted = this.#ask(at, 'insert', { ids: [id] }).then(
      () => {
        this.#answered += 1;
        this.#acknowledged.add(id);
        return true;
      },
      (error: unknown) => this.#failed(error),
    );
    return Promise.race([inserted, sleep(PATIENCE_MS, false)]);
  }

  #ask<M extends Method>(at: number, method: M, input: Calls[M][0]): Promise<Calls[M][1]> {
    return this.#cluster.members[at]!.ask(method, input, Infinity);
  }

  async #record<T>(
    { client, key }: To,
    asked: RegisterStep,
    answer: Promise<T>,
    stepOf: (output: T) => RegisterStep,
  ): Promise<boolean> {
    const entry: Open = {
      key: `${key}`,
      client,
      calledMs: performance.now(),
      answeredMs: Infinity,
      step: asked,
      refused: false,
    };
    this.#history.push(entry);
    const told = answer.then(
      (output) => {
        this.#answered += 1;
        entry.answeredMs = performance.now();
        entry.step = stepOf(output);
        return true;
      },
      (error: unknown) => {
        entry.refused = error instanceof NostosError && (error.code === 'NOT_PRIMARY' || error.code === 'DISK_FULL');
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
  async check(): Promise<CheckReport> {
    await this.served();
    await this.stop();
    const history: Operation[] = this.#history.filter(({ refused }) => !refused);
    const verdict = checkLinearizability(history, { initial: null });
    if (!verdict.linearizable) throw new Error(`not linearizable: ${describe(verdict)}`);
    const strange = [...this.#codes.keys()].filter((code) => !EXPECTED.has(code));
    if (strange.length > 0) throw new Error(`clients were told: ${strange.join('; ')}`);
    return {
      operations: history.length,
      inserted: this.#acknowledged.size,
      unknown: history.filter(({ answeredMs }) => answeredMs === Infinity).length,
    };
  }

  /** Every acknowledged row is on every member. */
  async checkRows(): Promise<void> {
    for (const [index, member] of this.#cluster.members.entries()) {
      const ids = new Set(await member.ask('ids', undefined));
      const lost = [...this.#acknowledged].filter((id) => !ids.has(id));
      if (lost.length > 0) throw new Error(`member ${index} lacks acknowledged rows ${lost.slice(0, 20).join(', ')}`);
    }
  }

  /** For faults that write by themselves: these ids must never be lost. */
  acknowledge(ids: readonly number[]): void {
    for (const id of ids) this.#acknowledged.add(id);
  }

  newIds(count: number): readonly number[] {
    return Array.from({ length: count }, () => this.#nextId++);
  }
}

function describe({ key, blocked, order }: { key: string; blocked: Operation; order: readonly Operation[] }): string {
  const lines = [...order.slice(-12), blocked].map(
    ({ client, calledMs, answeredMs, step }) =>
      `${client} ${calledMs.toFixed(1)}..${answeredMs.toFixed(1)} ${JSON.stringify(step)}`,
  );
  return `register ${key}, the last one fits nowhere:\n${lines.join('\n')}`;
}

export async function until(
  what: string,
  test: () => boolean | Promise<boolean>,
  timeoutMs = SETTLE_MS,
  told: () => string = () => '',
): Promise<void> {
  const endMs = performance.now() + timeoutMs;
  while (!(await test())) {
    if (performance.now() > endMs) throw new Error(`not in time: ${what} ${told()}`);
    await sleep(20);
  }
}
