/**
 * Kills one side of a restore at a random point, and runs it again: it must end with every file, and send again no more
 * than what was missing. The choices follow from the seed; how far the other side has come when the signal arrives
 * depends on the machine.
 */
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, statSync, readdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { seededRandom } from '../../base/random.ts';
import type { ChildJob, ChildNote } from './kill-child.fixture.ts';
import { digests, randomFiles } from './stream.fixture.ts';

export interface RestoreKillOptions {
  readonly rounds: number;
  readonly seed: number;
  readonly onProgress?: (progress: RestoreKillProgress) => void;
}

export interface RestoreKillProgress {
  readonly round: number;
  readonly killed: 'source' | 'receiver';
  readonly share: number;
  /** Of all bytes, what was sent in the second run. */
  readonly resentShare: number;
}

export interface RestoreKillReport {
  readonly rounds: number;
  readonly killedSource: number;
  readonly killedReceiver: number;
}

const SIZES = [5_000_000, 3_000_000, 2_000_000, 1_500_000, 400_000, 4096, 1, 0];
const TOTAL_BYTES = SIZES.reduce((sum, size) => sum + size, 0);
/** So slow that a signal arrives while it is still sending. */
const RATE_BYTES_PER_SECOND = 40_000_000;
/** What may be sent twice: for each of four channels what was received and not yet written; hashes and headers. */
const SLACK_BYTES = 4 * 2 * 512 * 1024 + 0.01 * TOTAL_BYTES;
/** What a receiver says whose source was killed. */
const LOST_CODES = ['CHANNEL_CLOSED', 'NETWORK_FAILED'];

export async function runRestoreKills({ rounds, seed, onProgress }: RestoreKillOptions): Promise<RestoreKillReport> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-restore-kill-'));
  const [sourceDir, targetDir] = [join(dir, 'source'), join(dir, 'target')];
  const killed = { source: 0, receiver: 0 };
  let source: Child | undefined;
  try {
    mkdirSync(sourceDir);
    for (const [name, bytes] of Object.entries(randomFiles(seed, SIZES))) writeFileSync(join(sourceDir, name), bytes);
    const expected = digests(sourceDir);
    const random = seededRandom(seed);
    for (let round = 0; round < rounds; round += 1) {
      rmSync(targetDir, { recursive: true, force: true });
      mkdirSync(targetDir);
      const victim = random.chance(0.5) ? 'source' : 'receiver';
      const share = random.below(1000) / 1000;
      source ??= await startSource(sourceDir);
      const receiver = new Child({ role: 'receiver', address: source.address, dir: targetDir, tellAtShare: share });
      const { doneBytes } = await receiver.hears('reached');
      if (victim === 'source') {
        await source.kill();
        source = undefined;
        const failure = await receiver.hears('failed');
        assert.ok(LOST_CODES.includes(failure.code), `${failure.code}: ${failure.message}`);
      } else await receiver.kill();
      killed[victim] += 1;
      const staged = readdirSync(targetDir).reduce((sum, name) => sum + statSync(join(targetDir, name)).size, 0);
      assert.ok(staged >= doneBytes - SLACK_BYTES, `${staged} bytes are there of ${doneBytes} that arrived`);

      source ??= await startSource(sourceDir);
      const again = new Child({ role: 'receiver', address: source.address, dir: targetDir, tellAtShare: 2 });
      const { bytesOnWire } = await again.hears('done');
      assert.deepEqual(digests(targetDir), expected, `round ${round}`);
      assert.ok(bytesOnWire <= TOTAL_BYTES - doneBytes + SLACK_BYTES, `${bytesOnWire} after ${doneBytes} were there`);
      onProgress?.({ round, killed: victim, share, resentShare: bytesOnWire / TOTAL_BYTES });
    }
  } finally {
    await source?.kill();
    rmSync(dir, { recursive: true, force: true });
  }
  return { rounds, killedSource: killed.source, killedReceiver: killed.receiver };
}

async function startSource(dir: string): Promise<Child> {
  const source = new Child({ role: 'source', dir, rateBytesPerSecond: RATE_BYTES_PER_SECOND });
  source.address = (await source.hears('listening')).address;
  return source;
}

class Child {
  address = '';
  readonly #process: ChildProcess;
  readonly #gone: Promise<void>;
  readonly #notes: ChildNote[] = [];
  #heard = Promise.withResolvers<void>();

  constructor(job: ChildJob) {
    this.#process = fork(join(import.meta.dirname, 'kill-child.fixture.ts'), {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#gone = new Promise((resolve) => void this.#process.once('exit', () => resolve()));
    this.#process.on('message', (note: ChildNote) => {
      this.#notes.push(note);
      this.#heard.resolve();
    });
    void this.#gone.then(() => this.#heard.resolve());
    this.#process.send(job);
  }

  /** The next note of this kind; what it says otherwise is passed over, and its end is a failure. */
  async hears<Kind extends ChildNote['kind']>(kind: Kind): Promise<Extract<ChildNote, { kind: Kind }>> {
    for (;;) {
      const note = this.#notes.shift();
      if (note?.kind === kind) return note as Extract<ChildNote, { kind: Kind }>;
      if (note?.kind === 'failed') throw new Error(`${note.code}: ${note.message}`);
      if (note !== undefined) continue;
      if (this.#process.exitCode !== null || this.#process.signalCode !== null)
        throw new Error(`a process ended without "${kind}"`);
      await this.#heard.promise;
      this.#heard = Promise.withResolvers<void>();
    }
  }

  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#gone;
  }
}
