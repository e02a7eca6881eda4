/**
 * A group of three nodes, each in a process of its own, on one machine: made from one node with one tenant, copied twice by
 * a network restore. All three are in sync, and with `minInSync` 3 each write waits until the disks of all three have it.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { deserializeError } from '../src/base/errors.ts';
import { randomHex128, systemRandom } from '../src/base/random.ts';
import type { Term } from '../src/base/brands.ts';
import { openCoordinator } from '../src/coordination/open-coordinator.ts';
import { openNode } from '../src/index.ts';
import { loadNode } from '../src/node/node-file.ts';
import { restoreNode } from '../src/node/restore-node.ts';
import { TENANT, type MemberAnswer, type MemberCall, type MemberMethod, type MemberRequests } from './group-child.ts';
import { ROWS_SCHEMA } from './plain.ts';

export const MEMBERS = 3;
const CHILD = join(import.meta.dirname, 'group-child.ts');

interface Call {
  resolve(output: unknown): void;
  reject(error: Error): void;
}

/** One member, which may be killed and started again. */
export class Member {
  readonly dir: string;
  readonly #coordinator: string;
  readonly #execArgv: readonly string[];
  #process: ChildProcess | undefined;
  #store = '';
  #nextId = 1;
  readonly #calls = new Map<number, Call>();

  constructor(dir: string, coordinator: string, execArgv: readonly string[] = process.execArgv) {
    this.dir = dir;
    this.#execArgv = execArgv;
    this.#coordinator = coordinator;
  }

  get store(): string {
    return this.#store;
  }

  get running(): boolean {
    return this.#process !== undefined;
  }

  async start(): Promise<void> {
    const child = fork(CHILD, { serialization: 'advanced', execArgv: [...this.#execArgv] });
    this.#process = child;
    child.on('message', (answer: MemberAnswer) => {
      const call = this.#calls.get(answer.id);
      this.#calls.delete(answer.id);
      if ('error' in answer) call?.reject(deserializeError(answer.error));
      else call?.resolve(answer.output);
    });
    child.once('exit', () => {
      if (this.#process === child) this.#process = undefined;
      for (const { reject } of this.#calls.values()) reject(new Error('the process of this member has ended'));
      this.#calls.clear();
    });
    const group = { coordinator: this.#coordinator, listen: { port: 0 } };
    this.#store = await this.ask('open', {
      dir: this.dir,
      migrations: [ROWS_SCHEMA],
      scrubIntervalMs: false,
      group,
    });
  }

  ask<M extends MemberMethod>(method: M, input: MemberRequests[M][0]): Promise<MemberRequests[M][1]> {
    const child = this.#process;
    if (child === undefined) return Promise.reject(new Error('this member is not running'));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      child.send({ id, method, input } satisfies MemberCall);
    });
  }

  /** kill -9. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (child === undefined) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  async stop(): Promise<void> {
    const child = this.#process;
    if (child === undefined) return;
    const exited = once(child, 'exit');
    await this.ask('close', undefined).catch(() => {});
    child.kill();
    await exited;
  }
}

export class GroupCluster implements AsyncDisposable {
  readonly members: readonly Member[];

  private constructor(members: readonly Member[]) {
    this.members = members;
  }

  /** All three in sync, and the first one leads. */
  static async start(dir: string, { coordinator, minInSync, execArgv }: GroupSetup): Promise<GroupCluster> {
    const dirs = Array.from({ length: MEMBERS }, (_, index) => join(dir, `member${index}`));
    await makeCopies(dirs);
    await makeGroup(dirs[0]!, coordinator);
    const cluster = new GroupCluster(dirs.map((path) => new Member(path, coordinator, execArgv)));
    try {
      const [first, ...others] = cluster.members as [Member, ...Member[]];
      await first.start();
      await first.ask('leads', undefined);
      for (const [index, other] of others.entries()) {
        await other.start();
        const add = other.store as never;
        await first.ask('changeMembers', { add, minInSync: Math.min(minInSync, index + 2) });
      }
      return cluster;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Whoever leads first from now on. */
  async leader(): Promise<Member> {
    const running = this.members.filter(({ running }) => running);
    return await Promise.any(running.map((member) => member.ask('leads', undefined).then(() => member)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.members.map((member) => member.stop()));
  }
}

export interface GroupSetup {
  readonly coordinator: string;
  readonly minInSync: number;
  /** Flags of Node for the members, to profile them for example; by default those of this process. */
  readonly execArgv?: readonly string[];
}

async function makeCopies([first, ...others]: readonly string[]): Promise<void> {
  await using node = await openNode({
    dir: first!,
    listen: { port: 0 },
    migrations: [ROWS_SCHEMA],
    scrubIntervalMs: false,
  });
  const tenant = await node.tenants.create(TENANT);
  await tenant.write((tx) => void tx.run('select 1'));
  for (const dir of others) await restoreNode({ dir, from: [node.address!] });
}

/** The record of a group of one, which the others join. */
async function makeGroup(dir: string, url: string): Promise<void> {
  const { store, generation } = loadNode(dir, undefined);
  await using coordination = await openCoordinator(url);
  // Of the time before it had a group, in which it was its own coordinator.
  rmSync(join(dir, 'coordinator.json'), { force: true });
  const made = await coordination.group('main').compareAndSet(0, {
    generation,
    term: 1 as Term,
    primary: null,
    members: [store],
    inSync: [store],
    minInSync: 1,
    renewal: 0,
    committed: null,
    nonce: randomHex128(systemRandom),
  });
  if (!made.ok) throw new Error('there is a group already');
}
