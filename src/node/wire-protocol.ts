/** What the node's own thread and the thread of the network say to each other. */
import type { SerializedError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { NodeIdentity } from './node-file.ts';
import type { RestoreHost } from './restore-host.ts';
import type { ListenAddress } from './types.ts';

export interface WireOptions {
  readonly dir: string;
  readonly listen: ListenAddress;
  readonly limits: Limits;
  readonly identity: NodeIdentity;
}

export type HostMethod = keyof RestoreHost;

/** From the thread of the network. The first message is `started` or `failed`. */
export type FromWire =
  | { readonly kind: 'started'; readonly address: string }
  | { readonly kind: 'failed'; readonly error: SerializedError }
  /** Connections that reached no service or whose service failed, by reason, since the start. */
  | { readonly kind: 'refused'; readonly refused: Readonly<Record<string, number>> }
  | { readonly kind: 'ask'; readonly id: number; readonly method: HostMethod; readonly input: readonly unknown[] };

export type ToWire =
  | { readonly kind: 'stop' }
  | { readonly kind: 'answer'; readonly id: number; readonly output: unknown }
  | { readonly kind: 'refusal'; readonly id: number; readonly error: SerializedError };
