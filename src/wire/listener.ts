/**
 * The accepting side: binds, takes connections within limits, and checks who is there. What it hands on is a stream of
 * bytes whose peer has passed. Without TLS it binds to loopback only: there is no way around that.
 */
import { lookup } from 'node:dns/promises';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { Server as TlsServer, TLSSocket } from 'node:tls';
import { nodeTls } from '../base/builtins.ts';
import { isNostosError, NostosError } from '../base/errors.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { formatAddress, isLoopbackIp, parseAddress, plainIp } from './address.ts';
import { ByteStream, connectionError, type ByteStreamOptions } from './byte-stream.ts';
import { secureContext, subjectAltName } from './connect.ts';
import { checkLimits } from './options.ts';
import { checkIdentity, refused, type PeerIdentity, type TlsIdentity } from './tls-identity.ts';

export interface ServerTls extends TlsIdentity {
  /** Ids of the nodes that may connect, or who decides. */
  readonly allowNodes: readonly string[] | ((peer: PeerIdentity) => boolean);
  /** The cluster that peers must belong to. */
  readonly cluster?: string | undefined;
}

export interface ListenOptions extends Omit<ByteStreamOptions, 'peerNode'> {
  readonly tls?: ServerTls | undefined;
  readonly peerConnectionsMax?: number | undefined;
  readonly connectionsPerAddressMax?: number | undefined;
  readonly preambleTimeoutMs?: number | undefined;
  /** A peer that has ended its side can still be written to; not with TLS. */
  readonly halfOpen?: boolean | undefined;
  /** Each connection that was refused, with the reason in `details.reason`. */
  readonly onRefused?: ((error: NostosError) => void) | undefined;
}

export class Listener {
  /** As it was given; `start` answers with the one that is bound. */
  readonly address: string;
  readonly #options: ListenOptions;
  readonly #accept: (stream: ByteStream) => void;
  readonly #sockets = new Set<Socket>();
  readonly #perAddress = new Map<string, number>();
  #server: Server | undefined;
  #tls: TlsServer | undefined;

  /** `accept` owns the stream that it gets, and closes it. */
  constructor(address: string, options: ListenOptions, accept: (stream: ByteStream) => void) {
    parseAddress(address);
    this.address = address;
    this.#options = checkLimits(options);
    this.#accept = accept;
  }

  get isListening(): boolean {
    return this.#server !== undefined;
  }

  /** Connections that are open now, those in the handshake included. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** Binds; resolves with the bound `host:port`. */
  async start(): Promise<string> {
    if (this.#server !== undefined) throw new NostosError('INVALID_ARGUMENT', `${this.address} is listened on already`);
    const { tls, halfOpen = false } = this.#options;
    const allowHalfOpen = halfOpen && tls === undefined;
    const server = createServer({ noDelay: true, allowHalfOpen }, (socket) => this.#connected(socket));
    this.#server = server;
    try {
      if (tls !== undefined) this.#tls = this.#createTls(tls);
      const { port } = parseAddress(this.address);
      const host = await this.#ipToBind();
      if (this.#server !== server) throw this.#closedWhileStarting();
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const closed = (): void => reject(this.#closedWhileStarting());
      // A server that was closed before it listens may listen all the same.
      server.once('listening', () => void (this.#server === server ? resolve() : server.close(closed)));
      server.once('error', reject).once('close', closed).listen({ host, port });
      await promise;
      server.off('error', reject).on('error', () => {});
      if (this.#server !== server) throw this.#closedWhileStarting();
    } catch (error) {
      if (this.#server === server) this.#server = undefined;
      throw connectionError(error as Error, `cannot listen on ${this.address}`);
    }
    const { address, port } = server.address() as AddressInfo;
    return formatAddress({ host: address, port });
  }

  /** Frees the port and takes no more connections; those that are there stay. */
  close(): void {
    this.#server?.close();
    this.#server = undefined;
  }

  /** Ends all connections at once. */
  destroy(): void {
    this.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #closedWhileStarting(): NostosError {
    return new NostosError('CLOSED', `${this.address} was closed while it was starting`);
  }

  async #ipToBind(): Promise<string> {
    const found = await lookup(parseAddress(this.address).host, { all: true });
    const open = found.find(({ address }) => !isLoopbackIp(address));
    if (open !== undefined && this.#options.tls === undefined)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `${this.address} can be reached from other machines, so it needs TLS: make certificates with nostos certs, or listen on 127.0.0.1`,
      );
    return found[0]!.address;
  }

  #createTls({ ca, cert, key, allowNodes, cluster }: ServerTls): TlsServer {
    secureContext({ ca, cert, key });
    if (typeof allowNodes !== 'function' && allowNodes.length === 0)
      throw new NostosError(
        'INVALID_ARGUMENT',
        'allowNodes is empty, so nobody could connect; list the nodes that may',
      );
    const server = nodeTls().createServer({
      ca,
      cert,
      key,
      minVersion: 'TLSv1.3',
      requestCert: true,
      rejectUnauthorized: true,
      handshakeTimeout: this.#options.preambleTimeoutMs ?? DEFAULT_LIMITS.preambleTimeoutMs,
    });
    server.on('secureConnection', (socket) => {
      const peer = peerOf(socket);
      try {
        if (!socket.authorized) throw refused(peer, 'UNAUTHORIZED', 'its certificate was not verified');
        const identity = checkIdentity(subjectAltName(socket), peer, { allowNodes, cluster });
        this.#accept(new ByteStream(socket, { ...this.#options, peerNode: identity.node }));
      } catch (error) {
        socket.on('error', () => {}).destroy();
        this.#refuse(isNostosError(error) ? error : refused(peer, 'ALLOW_FAILED', 'allowNodes failed', error));
      }
    });
    server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
      const reason = String(socket.authorizationError ?? error.code ?? 'TLS');
      socket.on('error', () => {}).destroy();
      this.#refuse(refused(peerOf(socket), reason, `no TLS with a certificate of our authority (${reason})`, error));
    });
    return server;
  }

  #connected(socket: Socket): void {
    const ip = plainIp(socket.remoteAddress ?? '');
    const here = this.#perAddress.get(ip) ?? 0;
    const { peerConnectionsMax, connectionsPerAddressMax } = { ...DEFAULT_LIMITS, ...defined(this.#options) };
    const full = this.#sockets.size >= peerConnectionsMax;
    if (full || here >= connectionsPerAddressMax) {
      const [reason, why] = full
        ? ['TOO_MANY_CONNECTIONS', `${peerConnectionsMax} connections are open, the limit`]
        : ['TOO_MANY_FROM_ADDRESS', `${connectionsPerAddressMax} connections from its address are open, the limit`];
      const peer = peerOf(socket);
      socket.on('error', () => {}).destroy();
      this.#refuse(new NostosError('QUEUE_FULL', `${peer} is refused: ${why}`, { details: { peer, reason } }));
      return;
    }
    this.#sockets.add(socket.on('error', () => {}));
    this.#perAddress.set(ip, here + 1);
    socket.once('close', () => {
      this.#sockets.delete(socket);
      const rest = (this.#perAddress.get(ip) ?? 1) - 1;
      if (rest > 0) this.#perAddress.set(ip, rest);
      else this.#perAddress.delete(ip);
    });
    if (this.#tls !== undefined) this.#tls.emit('connection', socket);
    else this.#accept(new ByteStream(socket, this.#options));
  }

  #refuse(error: NostosError): void {
    tell(() => this.#options.onRefused?.(error));
  }
}

/** A hook that throws must not end the process of the node. */
export function tell(hook: () => void): void {
  try {
    hook();
  } catch {
    // It was told.
  }
}

function peerOf(socket: Socket | TLSSocket): string {
  return formatAddress({ host: plainIp(socket.remoteAddress ?? 'unknown'), port: socket.remotePort ?? 0 });
}

/** Without the options that are there but undefined. */
function defined<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never;
}
