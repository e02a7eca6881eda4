/**
 * What waits for the writer of one tenant, in order. Everything that writes goes through here, so that at any time one
 * group, asynchronous transaction, migration or import has the writer. Writes that stand next to each other are handed
 * out together, as one group.
 */
import { NostosError } from '../base/errors.ts';

export interface Rejectable {
  reject(error: unknown): void;
}

interface ExclusiveJob extends Rejectable {
  run(): Promise<void>;
}

export interface QueueHost<W extends Rejectable> {
  readonly tenant: string;
  /** Runs a group and settles its jobs; answers with those that did not run and come next. Never rejects. */
  runGroup(jobs: W[]): Promise<readonly W[]>;
  /** Between two jobs. Never rejects. */
  between(): Promise<void>;
  /** Nothing waits any more. */
  idle(): void;
}

export interface QueueLimits {
  /** Jobs of users that may wait. */
  readonly jobsMax: number;
  readonly groupMax: number;
}

type Queued<W> =
  | { readonly kind: 'write'; readonly job: W }
  | { readonly kind: 'exclusive'; readonly job: ExclusiveJob };

export class WriteQueue<W extends Rejectable> {
  readonly #host: QueueHost<W>;
  readonly #limits: QueueLimits;
  #waiting: Queued<W>[] = [];
  #draining = false;
  /** Why nothing is taken any more. */
  #closed: NostosError | undefined;

  constructor(host: QueueHost<W>, limits: QueueLimits) {
    this.#host = host;
    this.#limits = limits;
  }

  get idle(): boolean {
    return !this.#draining && this.#waiting.length === 0;
  }

  write(job: W): void {
    this.#add({ kind: 'write', job }, true);
  }

  /** Runs `fn` while nothing else writes. Work of a user counts against the length of the queue. */
  exclusive<T>(fn: () => Promise<T>, { ofUser = false }: { readonly ofUser?: boolean } = {}): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const run = async (): Promise<void> => {
        try {
          resolve(await fn());
        } catch (error) {
          reject(error);
        }
      };
      this.#add({ kind: 'exclusive', job: { run, reject } }, ofUser);
    });
  }

  /** Refuses what comes, and all that waits. */
  close(reason: NostosError): void {
    this.#closed = reason;
    for (const { job } of this.#waiting.splice(0)) job.reject(reason);
  }

  #add(queued: Queued<W>, ofUser: boolean): void {
    if (this.#closed !== undefined) return queued.job.reject(this.#closed);
    if (ofUser && this.#waiting.length >= this.#limits.jobsMax)
      return queued.job.reject(
        new NostosError('QUEUE_FULL', `${this.#waiting.length} writes wait for tenant ${this.#host.tenant} already`),
      );
    this.#waiting.push(queued);
    if (this.#draining) return;
    this.#draining = true;
    // Those who write in the same turn share a group.
    queueMicrotask(() => void this.#drain());
  }

  async #drain(): Promise<void> {
    for (let head = this.#waiting[0]; head !== undefined; head = this.#waiting[0]) {
      if (head.kind === 'exclusive') {
        this.#waiting.shift();
        await head.job.run();
      } else {
        const left = await this.#host.runGroup(this.#takeGroup());
        if (left.length > 0) this.#waiting.unshift(...left.map((job) => ({ kind: 'write', job }) as const));
      }
      await this.#host.between();
    }
    this.#draining = false;
    this.#host.idle();
  }

  #takeGroup(): W[] {
    let count = 0;
    while (count < this.#limits.groupMax && this.#waiting[count]?.kind === 'write') count += 1;
    return this.#waiting.splice(0, count).flatMap((queued) => (queued.kind === 'write' ? [queued.job] : []));
  }
}
