/**
 * The network between the members of a group: a TCP proxy in front of each, so that what one sends to another can be lost,
 * held, delayed, cut, changed or sent twice, each direction of each pair apart. Who has opened a connection is in its first
 * frames, by boot. Everything that passes is cut into frames, of which a fault may want those with records.
 */
import { once } from 'node:events';
import { createServer, connect, type AddressInfo, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseFrame } from '../replication/codec.ts';
import type { HarnessNetwork, Ways } from './group-harness-network.fixture.ts';

export type FrameFault =
  /** A byte of its last record is another one. */
  | 'corrupt'
  /** Half of it arrives, then nothing more. */
  | 'cut'
  /** It arrives twice. */
  | 'repeat'
  /** It never arrives, what follows does. */
  | 'skip'
  /** It arrives after the next one. */
  | 'swap';

interface Rule {
  /** What is sent is lost; connections that lost something do not outlive it. */
  lost: boolean;
  /** What is sent waits. */
  held: PromiseWithResolvers<void> | undefined;
  delayMs: number;
  /** Of the next frames with records. */
  readonly faults: { readonly kind: FrameFault; readonly fired: () => void }[];
  /** Frames that were lost, held or delayed. */
  touched: number;
}

/** Of the two directions of a connection. */
interface Rules {
  readonly there: Rule;
  readonly back: Rule;
}

function newRule(): Rule {
  return { lost: false, held: undefined, delayMs: 0, faults: [], touched: 0 };
}

const HELLO_BOOT = /([0-9a-f]{32})-\d+/;
const HEADER_BYTES = 4;
/** Preamble and hello: which conversation it is, not yet a message. */
const FRAMES_BEFORE_MESSAGES = 2;
const LOOK_MS = 200;
const LOOKS_MAX = 50;

export interface LinkOptions {
  /** Which member has opened under this boot. */
  readonly identify: (boot: string) => Promise<number | undefined>;
}

export class Links implements HarnessNetwork {
  readonly #members: number;
  readonly #options: LinkOptions;
  readonly #servers: Server[] = [];
  readonly #targets: (string | undefined)[] = [];
  readonly #rules = new Map<string, Rule>();
  readonly #connections = new Set<Connection>();

  constructor(members: number, options: LinkOptions) {
    this.#members = members;
    this.#options = options;
  }

  hostOf(): string {
    return '127.0.0.1';
  }

  launcherOf(): readonly string[] {
    return [];
  }

  /** Addresses of the proxies, in the order of the members. */
  async open(): Promise<readonly string[]> {
    for (let index = 0; index < this.#members; index += 1) {
      const server = createServer({ allowHalfOpen: false }, (socket) => this.#accept(socket, index));
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      this.#servers.push(server);
    }
    return this.#servers.map((server) => `127.0.0.1:${(server.address() as AddressInfo).port}`);
  }

  /** Where a member really listens. */
  setTarget(index: number, address: string | undefined): void {
    this.#targets[index] = address;
  }

  #between(from: number, to: number): Rules {
    return { there: this.rule(from, to), back: this.rule(to, from) };
  }

  /** Who comes home asks a primary under the id of nobody; and a member that is just being opened is not known yet. */
  #ofStrangers(to: number): Rules {
    const near = (): readonly Rule[] =>
      [...this.#rules].filter(([key]) => key.split('>').includes(`${to}`)).map(([, rule]) => rule);
    const rule = (): Rule => ({
      ...newRule(),
      get lost() {
        return near().some(({ lost }) => lost);
      },
      get held() {
        return near().find(({ held }) => held !== undefined)?.held;
      },
    });
    return { there: rule(), back: rule() };
  }

  rule(from: number, to: number): Rule {
    const key = `${from}>${to}`;
    let rule = this.#rules.get(key);
    if (rule === undefined) {
      rule = newRule();
      this.#rules.set(key, rule);
    }
    return rule;
  }

  lose(from: number, to: number): void {
    this.rule(from, to).lost = true;
  }

  hold(from: number, to: number): void {
    this.rule(from, to).held ??= Promise.withResolvers<void>();
  }

  /** Nothing passes between the two, or only one way. */
  part(member: number, others: readonly number[], ways: Ways): void {
    for (const other of others) {
      if (ways !== 'in') this.lose(member, other);
      if (ways !== 'out') this.lose(other, member);
    }
  }

  /** Resolves when a frame with records has met it. */
  faultNext(from: number, to: number, kind: FrameFault): Promise<void> {
    return new Promise((fired) => void this.rule(from, to).faults.push({ kind, fired }));
  }

  /** Frames that met a rule since the last `heal`. */
  get touched(): number {
    return [...this.#rules.values()].reduce((sum, { touched }) => sum + touched, 0);
  }

  /** Everything works again. What was held is delivered, or lost with its connection. */
  heal(held: 'deliver' | 'lose' = 'deliver'): void {
    for (const connection of this.#connections) if (connection.lossy || held === 'lose') connection.destroy();
    for (const rule of this.#rules.values()) {
      rule.held?.resolve();
      Object.assign(rule, { lost: false, held: undefined, delayMs: 0, touched: 0 });
      rule.faults.length = 0;
    }
  }

  close(): void {
    this.heal();
    for (const server of this.#servers) server.close();
    for (const connection of this.#connections) connection.destroy();
  }

  #accept(opener: Socket, to: number): void {
    const target = this.#targets[to];
    if (target === undefined) return void opener.destroy();
    const [host = '', port = ''] = target.split(':');
    const connection = new Connection(opener, connect({ host, port: Number(port) }), {
      identify: this.#options.identify,
      rules: (from) => (from === undefined ? this.#ofStrangers(to) : this.#between(from, to)),
      onClosed: () => this.#connections.delete(connection),
    });
    this.#connections.add(connection);
  }
}

interface ConnectionDeps extends LinkOptions {
  readonly rules: (from: number | undefined) => Rules;
  readonly onClosed: () => void;
}

class Connection {
  lossy = false;
  readonly #sockets: readonly [Socket, Socket];

  constructor(opener: Socket, target: Socket, { identify, rules, onClosed }: ConnectionDeps) {
    this.#sockets = [opener, target];
    const asked = Promise.withResolvers<void>();
    let found = rules(undefined);
    const look = async (boot: string): Promise<void> => {
      for (let times = 0; times < LOOKS_MAX && !opener.destroyed; times += 1) {
        const from = await identify(boot);
        if (from !== undefined) found = rules(from);
        asked.resolve();
        if (from !== undefined) return;
        await sleep(LOOK_MS);
      }
    };
    const there = new Flow(target, {
      rule: () => asked.promise.then(() => found.there),
      connection: this,
      framesBefore: FRAMES_BEFORE_MESSAGES,
      onHello: (frame) => void look(HELLO_BOOT.exec(frame.toString('latin1'))?.[1] ?? ''),
    });
    const back = new Flow(opener, {
      rule: () => asked.promise.then(() => found.back),
      connection: this,
      framesBefore: 0,
    });
    opener.on('data', (chunk: Buffer) => there.push(chunk));
    target.on('data', (chunk: Buffer) => back.push(chunk));
    const closed = (): void => {
      this.destroy();
      onClosed();
    };
    for (const socket of this.#sockets)
      socket
        .setNoDelay(true)
        .on('error', () => {})
        .on('close', closed);
  }

  destroy(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}

interface FlowOptions {
  readonly rule: () => Promise<Rule>;
  readonly connection: Connection;
  readonly framesBefore: number;
  readonly onHello?: (frame: Buffer) => void;
}

/** One direction of a connection. */
class Flow {
  readonly #to: Socket;
  readonly #options: FlowOptions;
  #bytes: Buffer = Buffer.alloc(0);
  #frames = 0;
  #sending: Promise<void> = Promise.resolve();
  #swapped: Buffer | undefined;

  constructor(to: Socket, options: FlowOptions) {
    this.#to = to;
    this.#options = options;
  }

  push(chunk: Buffer): void {
    this.#bytes = this.#bytes.length === 0 ? chunk : Buffer.concat([this.#bytes, chunk]);
    while (this.#bytes.length >= HEADER_BYTES) {
      const end = HEADER_BYTES + this.#bytes.readUInt32LE(0);
      if (this.#bytes.length < end) return;
      const frame = this.#bytes.subarray(0, end);
      this.#bytes = this.#bytes.subarray(end);
      this.#frames += 1;
      if (this.#frames === this.#options.framesBefore) this.#options.onHello?.(frame);
      const isMessage = this.#frames > this.#options.framesBefore;
      this.#sending = this.#sending.then(() => this.#pass(frame, isMessage)).catch(() => {});
    }
  }

  async #pass(frame: Buffer, isMessage: boolean): Promise<void> {
    const rule = await this.#options.rule();
    const fault = isMessage && hasRecords(frame) ? rule.faults.shift() : undefined;
    const { held, delayMs } = rule;
    if (held !== undefined || delayMs > 0 || rule.lost) rule.touched += 1;
    if (held !== undefined) await held.promise;
    if (delayMs > 0) await sleep(delayMs);
    if (rule.lost) return void (this.#options.connection.lossy = true);
    if (fault !== undefined) {
      this.#harm(frame, fault.kind);
      return fault.fired();
    }
    this.#write(frame);
    if (this.#swapped !== undefined) this.#write(this.#swapped);
    this.#swapped = undefined;
  }

  #harm(frame: Buffer, kind: FrameFault): void {
    switch (kind) {
      case 'corrupt': {
        const changed = Buffer.from(frame);
        changed[changed.length - 1]! ^= 0x40;
        return this.#write(changed);
      }
      case 'cut':
        this.#to.end(frame.subarray(0, frame.length >> 1));
        return;
      case 'repeat':
        this.#write(frame);
        return this.#write(frame);
      case 'skip':
        return;
      case 'swap':
        this.#swapped = frame;
        return;
      default:
        return kind satisfies never;
    }
  }

  #write(bytes: Buffer): void {
    if (!this.#to.destroyed) this.#to.write(bytes);
  }
}

function hasRecords(frame: Buffer): boolean {
  try {
    return parseFrame(frame.subarray(HEADER_BYTES)).kind === 'records';
  } catch {
    return false;
  }
}
