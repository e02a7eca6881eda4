/**
 * Who of a group can serve a copy now, and whether its primary lives. Members say in their entries at the coordinator where
 * they let themselves be copied; more can be named by hand. Only what is of the record's generation, and of the cluster of
 * who asks, counts: whatever such a member serves is committed, and so a prefix of the primary's log.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { ClusterId, StoreId } from '../base/brands.ts';
import type { Coordination } from '../coordination/coordination.ts';
import type { GroupRecord } from '../coordination/coordinator.ts';
import type { ProviderInfo } from '../restore/provider.ts';
import { requestInfo } from '../restore/stream/client.ts';
import { STREAM_SERVICE_NAME } from '../restore/stream/messages.ts';
import { connectToService } from '../wire/connect.ts';
import type { TlsIdentity } from '../wire/tls-identity.ts';

export interface Asker {
  /** Name of the group. */
  readonly name: string;
  readonly record: GroupRecord;
  /** Absent: whoever asks is nobody yet. */
  readonly self?: { readonly store: StoreId; readonly cluster: ClusterId };
  readonly tls?: TlsIdentity | undefined;
  /** `host:port` of further nodes. */
  readonly restoreFrom: readonly string[];
  readonly limits: { readonly leaseMs: number; readonly coordinatorPollMs: number };
  readonly signal: AbortSignal;
}

export interface MembersAsked {
  /** Where a copy can be had. */
  readonly from: readonly string[];
  /** Why others do not serve one. */
  readonly refused: readonly string[];
  readonly primaryLives: boolean;
}

/** A member that does not answer by then serves nobody now. */
const ASK_TIMEOUT_MS = 5_000;

export async function askMembers(coordination: Coordination, asker: Asker): Promise<MembersAsked> {
  const { record, self, restoreFrom } = asker;
  const refused: string[] = [];
  const addresses = new Set(restoreFrom);
  for (const store of record.members) {
    if (store === self?.store) continue;
    const entry = (await coordination.member(store).read())?.record;
    if (entry?.copyAddress === undefined) refused.push(`${store} does not say where it can be copied`);
    else addresses.add(entry.copyAddress);
  }
  const from: string[] = [];
  let primaryLives = false;
  const ask = async (address: string): Promise<void> => {
    const info = await infoOf(address, asker).catch((error: unknown) => error as Error);
    if (info instanceof Error) return void refused.push(`${address}: ${info.message}`);
    if (info.store === self?.store) return;
    const why = unfit(info, asker);
    if (why !== undefined) return void refused.push(`${address} ${why}`);
    from.push(address);
    primaryLives ||= info.role === 'primary' && info.store === record.primary?.store;
  };
  await Promise.all([...addresses].map(ask));
  asker.signal.throwIfAborted();
  const other = record.primary !== null && record.primary.store !== self?.store;
  if (from.length > 0 && other) primaryLives ||= await renews(coordination, asker);
  return { from, refused, primaryLives };
}

function infoOf(address: string, { tls, signal }: Asker): Promise<ProviderInfo> {
  const within = AbortSignal.any([signal, AbortSignal.timeout(ASK_TIMEOUT_MS)]);
  const connect = (open: AbortSignal): ReturnType<typeof connectToService> =>
    connectToService(address, STREAM_SERVICE_NAME, { signal: open, ...(tls === undefined ? {} : { tls }) });
  return requestInfo({ connect }, within);
}

function unfit({ generation, cluster }: ProviderInfo, { record, self }: Asker): string | undefined {
  if (generation !== record.generation) return `serves generation ${generation}, the group is of ${record.generation}`;
  if (self !== undefined && cluster !== self.cluster) return `is of cluster ${cluster}, this node of ${self.cluster}`;
  return undefined;
}

/** A primary that lets nobody copy it shows by its renewals that it lives. */
async function renews(coordination: Coordination, { name, record, limits, signal }: Asker): Promise<boolean> {
  const coordinator = coordination.group(name);
  for (let waitedMs = 0; waitedMs <= limits.leaseMs; waitedMs += limits.coordinatorPollMs) {
    await sleep(limits.coordinatorPollMs, undefined, { signal });
    const now = (await coordinator.read())?.record;
    if (now === undefined || now.generation !== record.generation) return false;
    if (now.term > record.term || now.renewal > record.renewal) return now.primary !== null;
  }
  return false;
}
