/**
 * What operators are to be told, kept until it was: a file per notice, named by its key, which is the same in every
 * repetition. A notice is removed after it was taken, so a crash between the two tells it once more.
 */
import { join } from 'node:path';
import type { Disk } from '../../base/disk.ts';
import { readIfExists, writeDurably } from '../../base/durable-file.ts';
import { NostosError } from '../../base/errors.ts';
import { ROLLBACK_LIMITS, type RollbackNotice } from '../types.ts';

export type NoticeSink = (notice: RollbackNotice) => Promise<void>;

export interface Outbox {
  put(notice: RollbackNotice): void;
  /** Keys of what waits. */
  keys(): string[];
  read(key: string): RollbackNotice;
  remove(key: string): void;
}

/** Keys of what was taken, and of what was not, and why. */
export interface Delivery {
  readonly delivered: readonly string[];
  readonly failed: readonly { readonly key: string; readonly error: unknown }[];
}

/** Offers each waiting notice once; by default all of them. */
export async function deliver(
  outbox: Outbox,
  sink: NoticeSink,
  keys: readonly string[] = outbox.keys(),
): Promise<Delivery> {
  const delivered: string[] = [];
  const failed: { key: string; error: unknown }[] = [];
  for (const key of keys)
    try {
      await sink(outbox.read(key));
      outbox.remove(key);
      delivered.push(key);
    } catch (error) {
      failed.push({ key, error });
    }
  return { delivered, failed };
}

export class MemoryOutbox implements Outbox {
  readonly #notices = new Map<string, RollbackNotice>();

  put(notice: RollbackNotice): void {
    if (fits(notice, this.keys())) this.#notices.set(notice.key, notice);
  }

  keys(): string[] {
    return [...this.#notices.keys()];
  }

  read(key: string): RollbackNotice {
    const notice = this.#notices.get(key);
    if (notice === undefined) throw new NostosError('INTERNAL', `no notice ${key} waits`);
    return notice;
  }

  remove(key: string): void {
    this.#notices.delete(key);
  }
}

const FILE_NAME = /^([0-9a-z-]{1,100})\.json$/;
const KINDS: readonly unknown[] = ['rolled-back', 'refused', 'failed'] satisfies RollbackNotice['kind'][];

/** `dir` is made by its owner. What has no name of ours is left alone. */
export class FileOutbox implements Outbox {
  readonly #disk: Disk;
  readonly #dir: string;

  constructor(disk: Disk, dir: string) {
    this.#disk = disk;
    this.#dir = dir;
  }

  put(notice: RollbackNotice): void {
    if (fits(notice, this.keys()))
      writeDurably(this.#disk, this.#pathOf(notice.key), Buffer.from(JSON.stringify(notice)));
  }

  keys(): string[] {
    return this.#disk.list(this.#dir).flatMap((name) => FILE_NAME.exec(name)?.[1] ?? []);
  }

  read(key: string): RollbackNotice {
    const path = this.#pathOf(key);
    const text = Buffer.from(readIfExists(this.#disk, path) ?? []).toString();
    try {
      const notice = JSON.parse(text) as RollbackNotice;
      if (notice.key === key && KINDS.includes(notice.kind)) return notice;
    } catch (error) {
      throw unreadable(path, error);
    }
    throw unreadable(path, undefined);
  }

  remove(key: string): void {
    this.#disk.remove(this.#pathOf(key));
    this.#disk.syncDirectory(this.#dir);
  }

  #pathOf(key: string): string {
    return join(this.#dir, `${key}.json`);
  }
}

/** What was rolled back is always told; of the rest the first ones. */
function fits(notice: RollbackNotice, known: readonly string[]): boolean {
  return notice.kind === 'rolled-back' || known.includes(notice.key) || known.length < ROLLBACK_LIMITS.outboxEventsMax;
}

function unreadable(path: string, cause: unknown): NostosError {
  return new NostosError('UNSUPPORTED_FORMAT', `${path} is no notice of a rollback; move it elsewhere`, {
    ...(cause === undefined ? {} : { cause }),
    details: { path },
  });
}
