/**
 * A group of three nodes, each in a process of its own, on one machine: made from one node with one tenant, copied twice by
 * a network restore. All three are in sync, and with `minInSync` 3 each write waits until the disks of all three have it.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { deserializeError } from '../src/base/errors.ts';
import { initGroup } from '../src/node/group-init.ts';
import { openCoordinator } from '../src/coordination/open-coordinator.ts';
import { openNode, type NodeOptions } from '../src/index.ts';
import { restoreNode } from '../src/node/restore-node.ts';
import { TENANT, type MemberAnswer, type MemberCall, type MemberMethod, type MemberRequests } from './group-child.ts';
import { INSERT_ROW, ROWS_SCHEMA } from './plain.ts';

export const MEMBERS = 3;
const FILL_ROW_BYTES = 500_000;
const SETTLE_TIMEOUT_MS = 60_000;
const LEADER_TIMEOUT_MS = 60_000;
const LOOK_MS = 5;
const CHILD = join(import.meta.dirname, 'group-child.ts');

interface Call {
  resolve(output: unknown): void;
  reject(error: Error): void;
}

/** One member, which may be killed and started again. */
export class Member {
  readonly dir: string;
  readonly #setup: GroupSetup;
  #process: ChildProcess | undefined;
  #store = '';
  #nextId = 1;
  readonly #calls = new Map<number, Call>();

  constructor(dir: string, setup: GroupSetup) {
    this.dir = dir;
    this.#setup = setup;
  }

  get store(): string {
    return this.#store;
  }

  get running(): boolean {
    return this.#process !== undefined;
  }

  async start(): Promise<void> {
    const { coordinator, limits = {}, execArgv = process.execArgv } = this.#setup;
    const child = fork(CHILD, { serialization: 'advanced', execArgv: [...execArgv] });
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
    this.#store = await this.ask('open', {
      dir: this.dir,
      migrations: [ROWS_SCHEMA],
      scrubIntervalMs: false,
      limits,
      group: { coordinator, listen: { port: 0 } },
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
  static async start(dir: string, setup: GroupSetup): Promise<GroupCluster> {
    const dirs = Array.from({ length: MEMBERS }, (_, index) => join(dir, `member${index}`));
    await makeCopies(dirs, setup.fillBytes ?? 0);
    await makeGroup(dirs[0]!, setup.coordinator);
    const cluster = new GroupCluster(dirs.map((path) => new Member(path, setup)));
    try {
      const [first, ...others] = cluster.members as [Member, ...Member[]];
      await first.start();
      await cluster.leader();
      for (const [index, other] of others.entries()) {
        await other.start();
        const add = other.store as never;
        await first.ask('changeMembers', { add, minInSync: Math.min(setup.minInSync, index + 2) });
      }
      return cluster;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Whoever takes writes; waits until somebody does. */
  async leader(): Promise<Member> {
    for (const untilMs = performance.now() + LEADER_TIMEOUT_MS; performance.now() < untilMs; await sleep(LOOK_MS))
      for (const member of this.members)
        if (member.running && (await member.ask('leads', undefined).catch(() => false))) return member;
    throw new Error(`nobody leads: ${await this.#said()}`);
  }

  /** Who was lost has come back. */
  async untilAllInSync(): Promise<void> {
    for (const untilMs = performance.now() + SETTLE_TIMEOUT_MS; performance.now() < untilMs; await sleep(LOOK_MS)) {
      const leader = await this.leader();
      const { inSync } = await leader.ask('group', undefined);
      if (inSync.length === this.members.length) return;
    }
    throw new Error(`not all members are in sync: ${await this.#said()}`);
  }

  async #said(): Promise<string> {
    const said = this.members.map((member) => member.ask('group', undefined).then(({ events }) => events, String));
    return JSON.stringify(await Promise.all(said));
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
  readonly limits?: NodeOptions['limits'] & {};
  /** How much is in the tenant before the group begins. */
  readonly fillBytes?: number;
}

async function makeCopies([first, ...others]: readonly string[], fillBytes: number): Promise<void> {
  await using node = await openNode({
    dir: first!,
    listen: { port: 0 },
    migrations: [ROWS_SCHEMA],
    scrubIntervalMs: false,
    limits: { logRetainBytes: FILL_ROW_BYTES },
  });
  const tenant = await node.tenants.create(TENANT);
  await tenant.migrate([ROWS_SCHEMA]);
  const body = 'x'.repeat(FILL_ROW_BYTES);
  for (let bytes = 0; bytes < fillBytes; bytes += FILL_ROW_BYTES)
    await tenant.write((tx) => void tx.run(INSERT_ROW, [body]));
  for (const dir of others) await restoreNode({ dir, from: [node.address!] });
}

/** The record of a group of one, which the others join. */
async function makeGroup(dir: string, url: string): Promise<void> {
  await using coordination = await openCoordinator(url);
  await initGroup(coordination.group(), dir);
}
