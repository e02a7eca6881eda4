/** A real etcd on loopback, for tests and benchmarks: members that are started, killed and stopped one by one. */
import type { ChildProcess } from 'node:child_process';
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const START_TIMEOUT_MS = 30_000;
const PROBE_MS = 50;

/** Why tests that need etcd cannot run here; undefined where they can. */
export function etcdMissing(): string | undefined {
  const { error, stdout } = spawnSync('etcd', ['--version'], { encoding: 'utf8' });
  if (error !== undefined) return 'there is no etcd on the path (Debian: apt-get install etcd-server)';
  return /etcd Version: (?:3\.(?:[4-9]|\d\d)|[4-9])/.test(stdout)
    ? undefined
    : 'the etcd on the path is older than 3.4';
}

export interface EtcdClusterOptions {
  readonly members?: number;
  /** Where the data goes; without it, a temporary directory. */
  readonly dir?: string;
  /** More flags for each member, such as those of TLS. */
  readonly flags?: readonly string[];
  readonly scheme?: 'http' | 'https';
}

interface Member {
  readonly name: string;
  readonly clientPort: number;
  readonly peerPort: number;
  process?: ChildProcess | undefined;
}

/** Started by `EtcdCluster.start`; `close` ends every member and removes the data. */
export class EtcdCluster implements AsyncDisposable {
  readonly #dir: string;
  readonly #members: readonly Member[];
  readonly #options: EtcdClusterOptions;
  readonly #token = randomBytes(8).toString('hex');
  readonly #onExit = (): void => this.#members.forEach(({ process: child }) => child?.kill('SIGKILL'));

  private constructor(dir: string, members: readonly Member[], options: EtcdClusterOptions) {
    this.#dir = dir;
    this.#members = members;
    this.#options = options;
    // The tests' own process may be ended in the middle.
    process.once('exit', this.#onExit);
  }

  static async start(options: EtcdClusterOptions = {}): Promise<EtcdCluster> {
    const count = options.members ?? 3;
    const ports = await freePorts(2 * count);
    const members = Array.from({ length: count }, (_, index) => ({
      name: `m${index}`,
      clientPort: ports[2 * index]!,
      peerPort: ports[2 * index + 1]!,
    }));
    const dir = mkdtempSync(join(options.dir ?? tmpdir(), 'nostos-etcd-'));
    const cluster = new EtcdCluster(dir, members, options);
    try {
      await cluster.startAll();
    } catch (error) {
      await cluster.close();
      throw error;
    }
    return cluster;
  }

  /** `host:port` of each member. */
  get endpoints(): string[] {
    return this.#members.map(({ clientPort }) => `127.0.0.1:${clientPort}`);
  }

  get size(): number {
    return this.#members.length;
  }

  /** Starts what is not running, and waits until each member takes part. */
  async startAll(): Promise<void> {
    const indexes = this.#members.map((_, index) => index);
    for (const index of indexes) this.#spawn(index);
    await Promise.all(indexes.map((index) => this.#ready(index)));
  }

  async startMember(index: number): Promise<void> {
    this.#spawn(index);
    await this.#ready(index);
  }

  /** kill -9. */
  async kill(index: number): Promise<void> {
    const member = this.#members[index]!;
    const child = member.process;
    member.process = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  async killAll(): Promise<void> {
    await Promise.all(this.#members.map((_, index) => this.kill(index)));
  }

  /** SIGSTOP: its sockets stay open, and nothing answers. */
  pause(index: number): void {
    this.#members[index]!.process?.kill('SIGSTOP');
  }

  resume(index: number): void {
    this.#members[index]!.process?.kill('SIGCONT');
  }

  /** The member that leads, by its index. */
  async leader(): Promise<number> {
    for (let index = 0; index < this.size; index++) {
      const status = await this.#status(index);
      if (status !== undefined && status.leader === status.header?.member_id) return index;
    }
    throw new Error('no member of etcd leads');
  }

  /** Keeps the data of all members, which are down for it; what is returned brings that data back. */
  async image(): Promise<() => Promise<void>> {
    const copy = mkdtempSync(join(this.#options.dir ?? tmpdir(), 'nostos-etcd-image-'));
    await this.killAll();
    cpSync(this.#dir, copy, { recursive: true });
    await this.startAll();
    return async () => {
      await this.killAll();
      rmSync(this.#dir, { recursive: true, force: true });
      cpSync(copy, this.#dir, { recursive: true });
      rmSync(copy, { recursive: true, force: true });
      await this.startAll();
    };
  }

  async close(): Promise<void> {
    process.removeListener('exit', this.#onExit);
    await this.killAll();
    rmSync(this.#dir, { recursive: true, force: true });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #spawn(index: number): void {
    const member = this.#members[index]!;
    if (member.process !== undefined) return;
    const { scheme = 'http', flags = [] } = this.#options;
    const peerUrl = ({ peerPort }: Member): string => `http://127.0.0.1:${peerPort}`;
    const clientUrl = `${scheme}://127.0.0.1:${member.clientPort}`;
    const settings = {
      name: member.name,
      'data-dir': join(this.#dir, member.name),
      'listen-client-urls': clientUrl,
      'advertise-client-urls': clientUrl,
      'listen-peer-urls': peerUrl(member),
      'initial-advertise-peer-urls': peerUrl(member),
      'initial-cluster': this.#members.map((peer) => `${peer.name}=${peerUrl(peer)}`).join(','),
      'initial-cluster-token': this.#token,
      'log-outputs': join(this.#dir, `${member.name}.log`),
      logger: 'zap',
    };
    const args = Object.entries(settings).map(([flag, value]) => `--${flag}=${value}`);
    const [command = '', ...before] = endsWithParent();
    member.process = spawn(command, [...before, ...args, ...flags], { stdio: 'ignore' });
  }

  async #ready(index: number): Promise<void> {
    const deadlineMs = performance.now() + START_TIMEOUT_MS;
    const member = this.#members[index]!;
    while (performance.now() < deadlineMs) {
      const status = await this.#status(index);
      if (status?.leader !== undefined && status.leader !== '0') return;
      if (typeof member.process?.exitCode === 'number') break;
      await sleep(PROBE_MS);
    }
    const log = readFileSync(join(this.#dir, `${member.name}.log`), 'utf8').slice(-2_000);
    throw new Error(`etcd member ${member.name} did not start: ${log}`);
  }

  async #status(index: number): Promise<{ leader?: string; header?: { member_id?: string } } | undefined> {
    // With TLS, which member leads is not asked for: that it listens has to do.
    if (this.#options.scheme === 'https') return { leader: await listens(this.#members[index]!.clientPort) };
    try {
      const url = `http://${this.endpoints[index]}/v3/maintenance/status`;
      const response = await fetch(url, { method: 'POST', body: '{}', signal: AbortSignal.timeout(1_000) });
      return (await response.json()) as { leader?: string };
    } catch {
      return undefined;
    }
  }
}

/** etcd, on Linux by way of a command that has the kernel end it with this process, also when that one is killed. */
function endsWithParent(): string[] {
  const linux = spawnSync('setpriv', ['--version'], { stdio: 'ignore' }).status === 0;
  return linux ? ['setpriv', '--pdeathsig', 'KILL', 'etcd'] : ['etcd'];
}

async function listens(port: number): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return '1';
  } catch {
    return '0';
  } finally {
    socket.destroy();
  }
}

/** Ports that were free a moment ago, all different. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
