/**
 * A network of its own for each member, where the machine permits to make one: namespaces at a switch, with real sockets.
 * What one sends to another is dropped on the way, without a word to either of them: its packets go to a hardware address
 * that nobody has. One way of that leaves the other one open, and yet no TCP connection lives through it.
 *
 * Where none can be made the members are on loopback and cannot be parted like that.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';

export type Ways = 'both' | 'out' | 'in';

/** What lies between the members, as far as every kind of it can do. */
export interface HarnessNetwork {
  /** Where a member listens. */
  hostOf(index: number): string;
  /** Runs a process in its place. */
  launcherOf(index: number): readonly string[];
  /** Nothing passes between the two, or only one way. */
  part(member: number, others: readonly number[], ways: Ways): void;
  /** Everything passes again. */
  heal(): void;
  close(): void;
}

export class Loopback implements HarnessNetwork {
  hostOf(): string {
    return '127.0.0.1';
  }

  launcherOf(): readonly string[] {
    return [];
  }

  part(): never {
    throw new Error('members on loopback cannot be parted');
  }

  heal(): void {}

  close(): void {}
}

const NOBODY = '02:00:00:00:00:99';
let refusal: { readonly why: string | undefined } | undefined;
let networks = 0;

/** Why no network can be made here; undefined where it can. */
export function namespaceRefusal(): string | undefined {
  refusal ??= { why: attempt() };
  return refusal.why;
}

function attempt(): string | undefined {
  if (process.platform !== 'linux') return 'network namespaces are of Linux';
  try {
    removeAbandoned();
    new Namespaces(1).close();
    run('nsenter', '--version');
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

const NAMESPACES_DIR = '/run/netns';

/** Those of processes that were killed. */
function removeAbandoned(): void {
  if (!existsSync(NAMESPACES_DIR)) return;
  for (const name of readdirSync(NAMESPACES_DIR)) {
    const pid = /^nostos-(\d+)-/.exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) spawnSync('ip', ['netns', 'del', name]);
  }
}

export class Namespaces implements HarnessNetwork {
  readonly #prefix = `nostos-${process.pid}-${++networks}`;
  readonly #made: string[] = [];
  readonly #parted: (readonly [number, number])[] = [];

  constructor(members: number) {
    try {
      this.#add('switch');
      this.#ip('switch', 'link add switch type bridge');
      this.#ip('switch', 'link set switch up');
      for (let index = 0; index < members; index += 1) {
        const name = this.#add(`${index}`);
        this.#ip('switch', `link add port${index} type veth peer name eth0 netns ${name}`);
        this.#ip('switch', `link set port${index} master switch up`);
        this.#ip(`${index}`, `addr add ${this.hostOf(index)}/24 dev eth0`);
        for (const link of ['lo', 'eth0']) this.#ip(`${index}`, `link set ${link} up`);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  hostOf(index: number): string {
    return `10.117.0.${index + 1}`;
  }

  launcherOf(index: number): readonly string[] {
    return ['nsenter', `--net=${NAMESPACES_DIR}/${this.#nameOf(`${index}`)}`];
  }

  part(member: number, others: readonly number[], ways: Ways): void {
    for (const other of others) {
      if (ways !== 'in') this.#lose(member, other);
      if (ways !== 'out') this.#lose(other, member);
    }
  }

  heal(): void {
    for (const [from, to] of this.#parted.splice(0)) this.#ip(`${from}`, `neigh del ${this.hostOf(to)} dev eth0`);
  }

  close(): void {
    for (const name of this.#made.splice(0)) spawnSync('ip', ['netns', 'del', name]);
  }

  #lose(from: number, to: number): void {
    this.#ip(`${from}`, `neigh replace ${this.hostOf(to)} lladdr ${NOBODY} nud permanent dev eth0`);
    this.#parted.push([from, to]);
  }

  #nameOf(place: string): string {
    return `${this.#prefix}-${place}`;
  }

  #add(place: string): string {
    const name = this.#nameOf(place);
    run('ip', 'netns', 'add', name);
    this.#made.push(name);
    return name;
  }

  #ip(place: string, command: string): void {
    run('ip', '-n', this.#nameOf(place), ...command.split(' '));
  }
}

/** Segments that TCP had to send again in the network of this process. */
export function resentSegments(pid: number): number {
  const [names = '', values = ''] = readFileSync(`/proc/${pid}/net/snmp`, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('Tcp:'));
  return Number(values.split(' ')[names.split(' ').indexOf('RetransSegs')]);
}

function run(command: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} is not possible here: ${error?.message ?? stderr.trim()}`);
}
