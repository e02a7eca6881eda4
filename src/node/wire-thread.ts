/**
 * The thread of the network: other nodes connect here. It reads files, hashes, compresses and sends; what it needs of the
 * node it asks the node's own thread for, so that writers there do not wait for it.
 */
import { readlinkSync } from 'node:fs';
import { constants as osConstants, setPriority } from 'node:os';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { deserializeError, isNostosError, serializeError } from '../base/errors.ts';
import type { ServedLog } from '../restore/reference/served-files.ts';
import { NetworkRestoreServer } from '../restore/reference/server.ts';
import { RestoreService } from '../restore/stream/service.ts';
import { formatAddress } from '../wire/address.ts';
import { TcpServiceDispatcher } from '../wire/dispatcher.ts';
import type { ServerTls } from '../wire/listener.ts';
import type { RestoreHost } from './restore-host.ts';
import { NodeRestoreSource } from './restore-source.ts';
import type { FromWire, HostMethod, ToWire, WireOptions } from './wire-protocol.ts';

assert(parentPort !== null, 'the network is served in a worker thread');
const port = parentPort;
const { dir, listen, limits, identity } = workerData as WireOptions;

const REFUSED_EVERY_MS = 100;

interface Waiting {
  resolve(output: unknown): void;
  reject(error: unknown): void;
}

const waiting = new Map<number, Waiting>();
let nextId = 1;

function tell(message: FromWire): void {
  port.postMessage(message);
}

function ask<M extends HostMethod>(method: M): RestoreHost[M] {
  const asking = (...input: unknown[]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      const id = nextId++;
      waiting.set(id, { resolve, reject });
      tell({ kind: 'ask', id, method, input });
    });
  return asking as RestoreHost[M];
}

const host: RestoreHost = {
  begin: ask('begin'),
  hold: ask('hold'),
  release: ask('release'),
  logFiles: ask('logFiles'),
  end: ask('end'),
  openLog: ask('openLog'),
  closeLog: ask('closeLog'),
  info: ask('info'),
};

function serverTls(): ServerTls | undefined {
  if (listen.tls === undefined) return undefined;
  const { allowNodes, ...tls } = listen.tls;
  // Who is not named must at least belong to the cluster.
  return allowNodes === undefined
    ? { ...tls, allowNodes: () => true, cluster: identity.cluster }
    : { ...tls, allowNodes };
}

/** Where cores are scarce, writers come first. Linux knows priorities of threads; elsewhere it stays as it is. */
function yieldToWriters(): void {
  try {
    const thread = Number(readlinkSync('/proc/thread-self').split('/').at(-1));
    setPriority(thread, osConstants.priority.PRIORITY_LOW);
  } catch {
    // It is a courtesy.
  }
}

/** Of the open segment only what is committed: above the watermark nothing leaves the node. */
async function openLog(): Promise<ServedLog> {
  const { log, segments } = await host.openLog();
  const sizes = new Map(segments.map(({ name, bytes }) => [name, bytes]));
  return { sizeOf: (name) => sizes.get(name), [Symbol.asyncDispose]: () => host.closeLog(log) };
}

yieldToWriters();
const address = formatAddress({ host: listen.host ?? '127.0.0.1', port: listen.port });
/** Reasons are ours or those of TLS: few. Strangers who come often are told of once in a while. */
const refused: Record<string, number> = {};
let telling: NodeJS.Timeout | undefined;

function count(reason: string): void {
  refused[reason] = (refused[reason] ?? 0) + 1;
  telling ??= setTimeout(() => {
    telling = undefined;
    tell({ kind: 'refused', refused });
  }, REFUSED_EVERY_MS);
  telling.unref();
}

const dispatcher = new TcpServiceDispatcher(address, {
  ...limits,
  tls: serverTls(),
  onRefused: ({ code, details }) => count(typeof details['reason'] === 'string' ? details['reason'] : code),
  onError: (error) => count(isNostosError(error) ? error.code : 'INTERNAL'),
});
dispatcher.register(
  new RestoreService(new NodeRestoreSource(host, dir), {
    limits: { sessionsMax: limits.restoreSessionsMax, reservationTimeoutMs: limits.reservationTimeoutMs },
    ...(listen.rateBytesPerSecond === undefined ? {} : { rateBytesPerSecond: listen.rateBytesPerSecond }),
  }),
);
// Peers that know the reference's service only get the log.
dispatcher.register(new NetworkRestoreServer(join(dir, 'log'), { frameBytesMax: limits.frameBytesMax, openLog }));

port.on('message', (message: ToWire) => {
  if (message.kind === 'stop') {
    void dispatcher.stop().finally(() => port.close());
    return;
  }
  const asked = waiting.get(message.id);
  waiting.delete(message.id);
  if (message.kind === 'answer') asked?.resolve(message.output);
  else asked?.reject(deserializeError(message.error));
});

try {
  tell({ kind: 'started', address: await dispatcher.start() });
  collectIfGrown(GROWN_BYTES_BACKGROUND); // what loading has left
} catch (error) {
  tell({ kind: 'failed', error: serializeError(error) });
  port.close();
}
