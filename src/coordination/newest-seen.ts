/**
 * The newest group record that this node has seen, kept in `coordinator.json`. A coordinator that answers with an older
 * one, or with none, was set back: following it could lead two primaries to the same term, so the node stops instead.
 *
 * The record is on disk before `accept` returns it, and nothing is done on a record that was not accepted. A crash
 * before that leaves the older one, which only makes the check weaker by what was never acted on.
 */
import type { Disk } from '../base/disk.ts';
import { readIfExists, writeDurably } from '../base/durable-file.ts';
import { NostosError } from '../base/errors.ts';
import type { Versioned } from './coordinator.ts';
import { coordinatorDamaged, encodeGroupRecord, parseGroupRecord } from './coordinator.ts';

export class NewestSeen {
  readonly #disk: Disk;
  readonly #path: string;
  #newest: Versioned | undefined;

  constructor(disk: Disk, path: string) {
    this.#disk = disk;
    this.#path = path;
    this.#newest = load(disk, path);
  }

  get newest(): Versioned | undefined {
    return this.#newest;
  }

  /** Takes in what the coordinator answered; throws `COORDINATOR_REGRESSED` when more was seen before. */
  accept(current: Versioned | undefined): Versioned | undefined {
    return this.acceptSince(this.#newest, current);
  }

  /**
   * The same where several answers are under way; `since` is the newest one at the time of the question. An answer that
   * a newer one has overtaken is no step back; the newer one is what holds.
   */
  acceptSince(since: Versioned | undefined, current: Versioned | undefined): Versioned | undefined {
    const seen = this.#newest;
    if (since !== undefined && isOlder(current, since)) throw regressed(current, since);
    if (seen !== undefined && seen !== since && (current?.version ?? 0) < seen.version) return seen;
    if (current === undefined) return undefined;
    if (seen !== undefined && isOlder(current, seen)) throw regressed(current, seen);
    if (current.version === seen?.version) return current;
    writeNewest(this.#disk, this.#path, current);
    this.#newest = current;
    return current;
  }
}

/** Begins anew with this record: the directory has changed its coordinator. */
export function writeNewest(disk: Disk, path: string, current: Versioned): void {
  const text = `{"version":${current.version},"record":${encodeGroupRecord(current.record)}}\n`;
  writeDurably(disk, path, Buffer.from(text));
}

/** Whether that is a step back from what was seen. */
export function isOlder(current: Versioned | undefined, seen: Versioned): boolean {
  if (current === undefined || current.version < seen.version) return true;
  if (current.version === seen.version) return current.record.nonce !== seen.record.nonce;
  return current.record.term < seen.record.term;
}

function load(disk: Disk, path: string): Versioned | undefined {
  const bytes = readIfExists(disk, path);
  if (bytes === undefined) return undefined;
  let value: { version?: unknown; record?: unknown };
  try {
    value = Object(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)));
    if (typeof value.version !== 'number' || !Number.isSafeInteger(value.version) || value.version < 1)
      throw new Error('it has no version');
  } catch (cause) {
    throw coordinatorDamaged(path, cause);
  }
  return { version: value.version, record: parseGroupRecord(value.record, path) };
}

function regressed(current: Versioned | undefined, seen: Versioned): NostosError {
  const found = current === undefined ? 'no group record' : `version ${current.version} of term ${current.record.term}`;
  return new NostosError(
    'COORDINATOR_REGRESSED',
    `The coordinator has ${found}, but version ${seen.version} of term ${seen.record.term} was seen before; ` +
      `it was set back or belongs to another group. Bring its newest state back before this node goes on`,
    {
      details: {
        foundVersion: current?.version ?? 0,
        seenVersion: seen.version,
        foundTerm: current?.record.term ?? 0,
        seenTerm: seen.record.term,
      },
    },
  );
}
