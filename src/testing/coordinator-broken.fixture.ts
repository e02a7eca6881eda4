/**
 * Adapters that break one rule each, over the embedded one. As the main module it runs the compliance suite on the one
 * that `NOSTOS_BROKEN_RULE` names, so that a test can see which of its tests notice.
 */
import { closeSync, cpSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Coordination } from '../coordination/coordination.ts';
import type { CasResult, Coordinator, GroupRecord, Versioned } from '../coordination/coordinator.ts';
import type { Directory } from '../coordination/directory.ts';
import { embeddedCoordination } from '../coordination/embedded.ts';
import { coordinatorCompliance } from './coordinator-compliance.ts';

/** Each broken rule, and the tests that must notice. */
export const BROKEN_RULES = {
  none: 'group:|processes|clocks|stopped|directory:|set back|groups have',
  'last writer wins': 'group: of 8 writers|processes that write',
  'an own record is not recognised': 'group: a repeated write',
  'reads may be old': 'group: what one handle wrote',
  'a lock that is never broken': 'a stopped process',
  'a lease by the wall clock': 'wall clocks',
  'a silent watch': 'group: a watch',
  'a watch that repeats': 'group: a watch',
  'a watch that cannot be ended': 'group: a watch',
  'one record for all groups': 'groups have a record each',
  'pages that end early': 'listed by prefix',
  'pages without order': 'listed by prefix',
} as const;
export type BrokenRule = keyof typeof BROKEN_RULES;

interface Args {
  readonly dir: string;
  readonly rule: BrokenRule;
}

const LEASE_MS = 60_000;
const STALE_MS = 1_000;
const LOCK_TIMEOUT_MS = 8_000;

class BrokenCoordinator implements Coordinator {
  readonly #sound: Coordinator;
  readonly #args: Args;
  #cached: { current: Versioned | undefined; untilMs: number } | undefined;

  constructor(sound: Coordinator, args: Args) {
    this.#sound = sound;
    this.#args = args;
  }

  async read(): Promise<Versioned | undefined> {
    if (this.#args.rule !== 'reads may be old') return this.#sound.read();
    if (this.#cached === undefined || performance.now() > this.#cached.untilMs)
      this.#cached = { current: await this.#sound.read(), untilMs: performance.now() + STALE_MS };
    return this.#cached.current;
  }

  async compareAndSet(expectedVersion: number, record: GroupRecord): Promise<CasResult> {
    switch (this.#args.rule) {
      case 'last writer wins':
        return this.#overwrite(record);
      case 'an own record is not recognised': {
        const current = await this.#sound.read();
        if (current?.record.nonce === record.nonce) return { ok: false, current };
        return this.#sound.compareAndSet(expectedVersion, record);
      }
      case 'a lock that is never broken':
        return this.#locked(() => this.#sound.compareAndSet(expectedVersion, record));
      case 'a lease by the wall clock': {
        const stamp = join(this.#args.dir, 'stamp');
        const wonMs = existsSync(stamp) ? Number(readFileSync(stamp, 'utf8')) : Date.now();
        const expired = Math.abs(Date.now() - wonMs) > LEASE_MS;
        const result = expired
          ? await this.#overwrite(record)
          : await this.#sound.compareAndSet(expectedVersion, record);
        if (result.ok) writeFileSync(stamp, String(Date.now()));
        return result;
      }
      default:
        return this.#sound.compareAndSet(expectedVersion, record);
    }
  }

  watch(listener: (current: Versioned) => void, options: { signal: AbortSignal }): void {
    const { rule } = this.#args;
    if (rule === 'a silent watch') return;
    const signal = rule === 'a watch that cannot be ended' ? new AbortController().signal : options.signal;
    const times = rule === 'a watch that repeats' ? 2 : 1;
    this.#sound.watch((current) => Array.from({ length: times }, () => listener(current)), { signal });
  }

  async #overwrite(record: GroupRecord): Promise<CasResult> {
    for (;;) {
      const version = (await this.#sound.read())?.version ?? 0;
      const result = await this.#sound.compareAndSet(version, record);
      if (result.ok) return result;
    }
  }

  async #locked(write: () => Promise<CasResult>): Promise<CasResult> {
    const lock = join(this.#args.dir, 'lock');
    for (const startMs = performance.now(); !take(lock); await sleep(1))
      if (performance.now() - startMs > LOCK_TIMEOUT_MS) throw new Error('the lock is held');
    await sleep(5);
    const result = await write();
    rmSync(lock);
    return result;
  }
}

function take(lock: string): boolean {
  try {
    closeSync(openSync(lock, 'wx'));
    return true;
  } catch {
    return false;
  }
}

function brokenDirectory(sound: Directory, rule: BrokenRule): Directory {
  return {
    entry: (id) => sound.entry(id),
    async list(options = {}) {
      const page = await sound.list(options);
      if (rule === 'pages that end early') return { ...page, next: undefined };
      if (rule === 'pages without order') return { ...page, entries: page.entries.toReversed() };
      return page;
    },
  };
}

export function openCoordinator(args: unknown): Coordination {
  const { dir, rule } = args as Args;
  const sound = embeddedCoordination({ dir, pollMs: 5 });
  return {
    ...sound,
    group(name) {
      const group = sound.group(name);
      return new BrokenCoordinator(rule === 'one record for all groups' ? sound.group() : group, { dir, rule });
    },
    directory: brokenDirectory(sound.directory, rule),
  };
}

if (import.meta.main)
  coordinatorCompliance({
    name: 'broken',
    module: import.meta.url,
    fresh(t) {
      const dir = mkdtempSync(join(tmpdir(), 'nostos-broken-'));
      t.after(() => rmSync(dir, { recursive: true, force: true }));
      return { dir, rule: process.env.NOSTOS_BROKEN_RULE };
    },
    async image(args) {
      const { dir } = args as Args;
      const copy = mkdtempSync(join(tmpdir(), 'nostos-broken-'));
      cpSync(dir, copy, { recursive: true });
      return async () => {
        rmSync(dir, { recursive: true });
        cpSync(copy, dir, { recursive: true });
        rmSync(copy, { recursive: true });
      };
    },
  });
