/**
 * A group of real node processes on an embedded coordinator or a real etcd, over a network that can be disturbed
 * (`group-harness-links.fixture.ts` or `group-harness-network.fixture.ts`), clients that write and read all the time, and the
 * checks that follow each fault: the group commits again, all copies are equal, no acknowledged write is lost, and the
 * history of the clients is linearizable.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { toClusterId, toNodeId, type ClusterId, type NodeId } from '../base/brands.ts';
import type { Limits } from '../base/limits.ts';
import { seededRandom, type SeededRandom } from '../base/random.ts';
import { openCoordinator } from '../coordination/open-coordinator.ts';
import { createAuthority, createNodeCertificate, type KeyPair } from '../wire/certificates.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';
import { LOCAL_TENANT, MIGRATIONS, TENANT, type Opened } from './group-child.fixture.ts';
import { Clients, type CheckReport } from './group-harness-clients.fixture.ts';
import {
  EmbeddedHarness,
  EtcdHarness,
  MEMBERS,
  type HarnessCoordinator,
} from './group-harness-coordinators.fixture.ts';
import { Links } from './group-harness-links.fixture.ts';
import { Member, SETTLE_MS, until, type MemberEnvironment } from './group-harness-member.fixture.ts';
import { Loopback, namespaceRefusal, Namespaces, type HarnessNetwork } from './group-harness-network.fixture.ts';
import { initGroup } from './group-init.ts';
import { openNode } from './open-node.ts';
import { restoreNode } from './restore-node.ts';
import type { NodeOptions, NodeStatus } from './types.ts';

const COMPILED = process.env.NODE_COMPILE_CACHE ?? temporary('nostos-compiled-');

/** A directory that goes with this process. */
function temporary(prefix: string): string {
  const dir = mkdtempSync(join(tmpdir(), prefix));
  process.once('exit', () => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

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
  commitStallMs: 1_600,
  candidateBackoffMs: 200,
  candidateBackoffMaxMs: 1_000,
  handoverTimeoutMs: 1_500,
  segmentBytesMax: 1024 * 1024,
  recordBytesMax: 512 * 1024,
  lockTimeoutMs: 1_000,
  rejoinBackoffMs: 100,
  rejoinBackoffMaxMs: 500,
} as const satisfies Partial<Limits>;

export interface ClusterOptions {
  readonly coordinator?: 'embedded' | 'etcd';
  /**
   * `links`, the default: a proxy in front of each member, which sees and disturbs single frames. `sockets`: TLS from member
   * to member, each in a network of its own where one can be made.
   */
  readonly network?: 'links' | 'sockets';
  readonly seed?: number;
  /** Where the directory of a member is; by default all are beside each other. */
  readonly dirOf?: (index: number) => string | undefined;
  readonly limits?: Partial<Limits>;
}

export class GroupCluster implements AsyncDisposable {
  readonly root: string;
  readonly dirs: readonly string[];
  readonly coordinator: HarnessCoordinator;
  readonly network: HarnessNetwork;
  /** Only over `links`. */
  readonly links: Links | undefined;
  readonly members: Member[] = [];
  readonly random: SeededRandom;
  readonly clients: Clients;
  readonly #limits: Partial<Limits>;
  readonly #boots = new Map<string, number>();
  #authority: HarnessAuthority | undefined;
  #identities: readonly TlsIdentity[] = [];
  #advertised: readonly string[] = [];

  private constructor(root: string, coordinator: HarnessCoordinator, options: ClusterOptions) {
    this.root = root;
    this.coordinator = coordinator;
    this.random = seededRandom(options.seed ?? 1);
    this.#limits = { ...HARNESS_LIMITS, ...options.limits };
    this.dirs = Array.from({ length: MEMBERS }, (_, index) => options.dirOf?.(index) ?? join(root, `node${index}`));
    if (options.network === 'sockets')
      this.network = namespaceRefusal() === undefined ? new Namespaces(MEMBERS) : new Loopback();
    else this.network = this.links = new Links(MEMBERS, { identify: (boot) => this.#identify(boot) });
    this.clients = new Clients(this);
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
      for (const name of [TENANT, LOCAL_TENANT]) {
        const tenant = await node.tenants.create(name);
        await tenant.write((tx) => void tx.run("insert into item values (0, 'before the group')"));
      }
      await Promise.all(others.map((dir) => restoreNode({ dir, from: [node.address ?? ''] })));
    }
    await using coordination = await openCoordinator(this.coordinator.urlOf(0));
    await initGroup(coordination.group(), first);
  }

  async #join(): Promise<void> {
    if (this.links === undefined) await this.#certify();
    else this.#advertised = await this.links.open();
    await Promise.all(this.dirs.map((_, index) => this.open(index)));
    const primary = await this.primary();
    for (const { store } of this.members)
      if (store !== undefined && store !== primary.store)
        await primary.ask('changeMembers', { add: store, minInSync: 2 });
    await this.settled();
  }

  async #certify(): Promise<void> {
    this.#authority = await HarnessAuthority.make(this.idsOf(0).cluster);
    this.#identities = await Promise.all(
      this.dirs.map((_, index) => this.authority.issue(this.idsOf(index).node, [this.network.hostOf(index)])),
    );
  }

  /** Who makes the certificates of the members, over `sockets`. */
  get authority(): HarnessAuthority {
    if (this.#authority === undefined) throw new Error('this group has no certificates');
    return this.#authority;
  }

  identityOf(index: number): TlsIdentity {
    return this.#identities[index]!;
  }

  /** What the directory of a member says of itself. */
  idsOf(index: number): { readonly node: NodeId; readonly cluster: ClusterId } {
    const ids = JSON.parse(readFileSync(join(this.dirs[index]!, 'node.json'), 'utf8')) as Record<string, string>;
    return { node: toNodeId(ids.node ?? ''), cluster: toClusterId(ids.cluster ?? '') };
  }

  nodeOptions(index: number, { dir = this.dirs[index]!, tls = this.#identities[index] }: OpenAs = {}): NodeOptions {
    const advertise = this.#advertised[index];
    return {
      dir,
      migrations: MIGRATIONS,
      scrubIntervalMs: false,
      limits: this.#limits,
      group: {
        coordinator: this.coordinator.urlOf(index),
        listen: { host: this.network.hostOf(index), port: 0, ...(tls === undefined || tls === 'none' ? {} : { tls }) },
        ...(advertise === undefined ? {} : { advertise }),
      },
    };
  }

  /** A process in the place of a member, which it does not become. */
  spawn(index: number, { launcher = [], dir, tls, ...environment }: OpenAs & MemberEnvironment = {}): Member {
    const as = { ...(dir === undefined ? {} : { dir }), ...(tls === undefined ? {} : { tls }) };
    return new Member(this.nodeOptions(index, as), {
      ...environment,
      launcher: [...this.network.launcherOf(index), ...launcher],
      compileCache: COMPILED,
    });
  }

  /** Starts the process of a member that has none. */
  async open(index: number, options: OpenAs & MemberEnvironment = {}): Promise<Member> {
    const onOpened = ({ boot, address }: Opened): void => {
      this.#boots.set(boot, index);
      this.links?.setTarget(index, address);
    };
    const member = this.spawn(index, { ...options, onOpened });
    this.members[index] = member;
    await member.opened;
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
    const seen: unknown[] = [];
    await until(
      'a member leads',
      async () => {
        for (const [index, member] of this.members.entries()) {
          if (member === not) continue;
          const status = await this.statusOf(member);
          seen[index] = status === undefined ? 'does not answer' : { role: status.role, ...status.group };
          if (status?.role !== 'primary' || status.group?.role !== 'leading') continue;
          if (status.group.term > (found?.term ?? 0)) found = { member, term: status.group.term };
        }
        return found !== undefined;
      },
      timeoutMs,
      () => JSON.stringify(seen),
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
    const report = await this.clients.check();
    await this.settled();
    return { ...report, ...(await this.clients.checkRows()) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.clients.stop();
    for (const member of this.members) member.resume();
    await Promise.all(this.members.map((member) => member.kill()));
    this.network.close();
    await this.coordinator[Symbol.asyncDispose]();
    rmSync(this.root, { recursive: true, force: true });
  }
}

export interface OpenAs {
  readonly dir?: string;
  /** Instead of its own. */
  readonly tls?: TlsIdentity | 'none';
}

const DAY_MS = 24 * 60 * 60 * 1000;

/** What `nostos certs` makes, for a day. */
export class HarnessAuthority {
  readonly #pair: KeyPair;

  private constructor(pair: KeyPair) {
    this.#pair = pair;
  }

  static async make(cluster: string): Promise<HarnessAuthority> {
    return new HarnessAuthority(await createAuthority(cluster, { nowMs: Date.now() - 2 * DAY_MS, days: 4 }));
  }

  async issue(node: NodeId, hosts: readonly string[], validity: 'now' | 'over' = 'now'): Promise<TlsIdentity> {
    const nowMs = validity === 'now' ? Date.now() : Date.now() - 1.5 * DAY_MS;
    return { ca: this.#pair.cert, ...(await createNodeCertificate(this.#pair, { node, hosts }, { nowMs, days: 1 })) };
  }
}
